"""The harness's own tasks on local files: its calls of `datasets.load_dataset` answered from our sources, offline."""

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


@contextmanager
def local_datasets(data_dir: str | Path) -> Iterator[None]:
    """Within it, the four benchmarks come from `data_dir`; everything else from where it came before."""
    import datasets  # pyright: ignore[reportMissingImports]

    before = datasets.load_dataset

    def load(path: str | None = None, name: str | None = None, *args: object, **kwargs: object) -> object:
        if path is None or path not in KNOWN:
            return before(path, name, *args, **kwargs)
        return _splits(KNOWN[path], name, Path(data_dir))

    datasets.load_dataset = load  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        datasets.load_dataset = before


def _splits(dataset: str, name: str | None, folder: Path) -> object:
    """All splits that the folder has, of MMLU those records of the subject `name`."""
    import datasets  # pyright: ignore[reportMissingImports]

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
    return datasets.DatasetDict(found)
