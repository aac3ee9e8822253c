"""The harness's own tasks on local files: its calls of `datasets.load_dataset` answered from our sources, offline."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.data import find
from experiments.data import load as sources

KNOWN = {
    "cais/mmlu": "mmlu", "allenai/ai2_arc": "arc", "allenai/winogrande": "winogrande", "openai/gsm8k": "gsm8k",
}  # fmt: skip
"""Hub name -> our name."""
SAMPLING = re.compile(r"(?i)sampl")
"""In the harness's messages about too few examples."""


@contextmanager
def local_datasets(data_dir: str | Path) -> Iterator[None]:
    """Within it, the four benchmarks come from `data_dir`; everything else from where it came before.

    A split without files is empty, so that a task without shots needs the split alone that it scores.

    Raises:
      UsageError: a task finds no record, or too few for its shots, in a split that has no files.
    """
    import datasets  # pyright: ignore[reportMissingImports]

    before, absent = datasets.load_dataset, list[str]()

    def load(path: str | None = None, name: str | None = None, *args: object, **kwargs: object) -> object:
        if path is None or path not in KNOWN:
            return before(path, name, *args, **kwargs)
        return _splits(KNOWN[path], name, Path(data_dir).expanduser(), absent)

    datasets.load_dataset = load  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    except (AssertionError, IndexError, ValueError) as error:
        if absent and (isinstance(error, IndexError) or SAMPLING.search(str(error))):
            raise UsageError(f"{absent[-1]}; add its files, or use --shots 0 if only the shots come from it") from None
        raise
    finally:
        datasets.load_dataset = before


def _splits(dataset: str, name: str | None, folder: Path, absent: list[str]) -> object:
    """All splits that the folder has, of MMLU those records of the subject `name`; others are empty, and noted."""
    import datasets  # pyright: ignore[reportMissingImports]

    class Splits(datasets.DatasetDict):
        def __missing__(self, split: str) -> datasets.Dataset:
            there = ", ".join(self) or "none"
            subject = f" of {name}" if dataset == "mmlu" else ""
            absent.append(f"{dataset}: no {split} split{subject} under {folder} (there is: {there})")
            return next(iter(self.values())).select([])

    if dataset == "arc" and name != "ARC-Challenge":
        raise UsageError(f"{name} has no local source: only ARC-Challenge")
    found = {}
    for split in find.splits(dataset, folder):
        records = [line.record for line in sources.load(dataset, split, folder)]
        mine = [record for record in records if dataset != "mmlu" or record["subject"] == name]
        if mine:
            found[split] = datasets.Dataset.from_list(mine)
    if not found:
        raise UsageError(f"{dataset}: no files of {name} under {folder}; wanted: {find.WANTED[dataset]}")
    return Splits(found)
