"""Records of the real benchmarks from one folder, in whatever public layout they lie there; nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.data import find, mmlu_csv, parquet
from experiments.data import tfds as prepared
from experiments.data.jsonl import Line, read_lines
from experiments.data.schema import to_record

READERS = {
    ".jsonl": read_lines,
    ".csv": mmlu_csv.read,
    ".parquet": parquet.read_parquet,
    ".arrow": parquet.read_arrow,
}


def load(dataset: str, split: str, data_dir: str | Path) -> list[Line]:
    """Reads all records of a split in the public schema, in its files' order.

    Args:
      dataset: mmlu, gsm8k, winogrande (XL) or arc (Challenge).
      split: test, validation or train; of MMLU dev too.
      data_dir: where the files are.

    Raises:
      UsageError: in one line: no such split (what there is), or what is wrong, with file and line.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}, where the benchmarks' files should lie")
    files = find.files(dataset, split, folder)
    if not files and (home := prepared.home(dataset, folder)):
        lines = prepared.read(home, dataset, split)
    else:
        lines = [line for path in files for line in _read(dataset, path)]
    if not lines:
        raise UsageError(f"{dataset}: no {split} split under {folder} {_present(dataset, folder)}")
    return [Line(to_record(dataset, line), line.where) for line in lines]


def _read(dataset: str, path: Path) -> Sequence[Line]:
    """The lines of one file; those of MMLU get their subject from its name if they do not say it."""
    lines = READERS[path.suffix](path)
    if not lines:
        raise UsageError(f"{path}: the file has no record")
    if dataset != "mmlu":
        return lines
    subject = find.subject(path)
    return [Line({"subject": subject, **line.record}, line.where) for line in lines]


def _present(dataset: str, folder: Path) -> str:
    found = find.splits(dataset, folder)
    if found:
        return f"(there is: {', '.join(found)}); add its files or choose another split"
    return f"(no files of {dataset} at all); wanted: {find.WANTED[dataset]}, or a prepared TFDS folder"
