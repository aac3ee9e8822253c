"""A TFDS builder of MMLU over the public CSV layout, in the order of its files.

    python -m experiments.data.tfds_mmlu --csv-dir mmlu --output tfds

Afterwards `--data.dir tfds` finds it. TFDS has no MMLU of its own.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.data import find
from experiments.data.jsonl import Line
from experiments.data.load import load
from experiments.data.tfds import INSTALL
from experiments.tasks.types import Record

try:
    import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
    print(f"error: python -m experiments.data.tfds_mmlu needs {error.name}: {INSTALL}", file=sys.stderr)
    raise SystemExit(2) from None

SPLITS = {"test": "test", "validation": "validation", "dev": "dev", "auxiliary_train": "train"}
"""Name here -> name of the files' split."""


class MmluCsv(tfds.core.GeneratorBasedBuilder):
    """{question, choices, answer, subject}; `csv_dir` holds dev/SUBJECT_dev.csv, test/SUBJECT_test.csv and so on."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, csv_dir: str | Path, data_dir: str, file_format: str):
        self.csv_dir = Path(csv_dir)
        super().__init__(data_dir=data_dir, file_format=file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Massive Multitask Language Understanding (arXiv 2009.03300), 57 subjects.",
            homepage="https://github.com/hendrycks/test",
            features=tfds.features.FeaturesDict(
                {
                    "question": tfds.features.Text(),
                    "choices": tfds.features.Sequence(tfds.features.Text()),
                    "answer": tfds.features.ClassLabel(names=list("ABCD")),
                    "subject": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Record]]]:
        del dl_manager
        found = {name: self._lines(split) for name, split in SPLITS.items()}
        return {name: self._generate_examples(lines) for name, lines in found.items() if lines}

    def _lines(self, split: str) -> list[Line]:
        """The split's records; none where the folder lacks it."""
        return load("mmlu", split, self.csv_dir) if find.files("mmlu", split, self.csv_dir) else []

    def _generate_examples(self, lines: Sequence[Line]) -> Iterator[tuple[int, Record]]:
        for number, line in enumerate(lines):
            yield number, line.record


def prepare(csv_dir: str | Path, data_dir: str | Path) -> MmluCsv:
    """Writes the dataset below `data_dir`, as array_record.

    Raises:
      UsageError: the folder has no MMLU, or a file is wrong, with its line.
    """
    if not find.splits("mmlu", Path(csv_dir)):
        raise UsageError(f"no MMLU files under {csv_dir}: wanted {find.WANTED['mmlu']}")
    builder = MmluCsv(csv_dir=csv_dir, data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return builder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data.tfds_mmlu", description=__doc__)
    parser.add_argument("--csv-dir", required=True, help="folder of the public CSV files")
    parser.add_argument("--output", required=True, help="folder of TFDS datasets to write into")
    args = parser.parse_args(argv)
    try:
        print(prepare(args.csv_dir, args.output).info)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
