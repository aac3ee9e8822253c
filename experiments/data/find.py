"""Files of a benchmark's split below a folder, told by the words of their paths."""

import re
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.tasks.subjects import GROUP_OF

SUFFIXES = (".jsonl", ".csv", ".parquet", ".arrow")
"""In order of preference where a split is there in several formats."""
MARKS = {
    "mmlu": r"mmlu",
    "gsm8k": r"gsm8k|grade[-_]school[-_]math",
    "winogrande": r"winogrande",
    "arc": r"arc[-_]challenge",
}
ALIASES = {"test": ("test",), "validation": ("validation", "valid", "val", "dev"), "train": ("train",)}
MMLU_ALIASES = {
    "test": ("test",), "validation": ("validation", "valid", "val"), "dev": ("dev",), "train": ("train", "auxiliary"),
}  # fmt: skip
WANTED = {
    "mmlu": "dev/SUBJECT_dev.csv and test/SUBJECT_test.csv, or parquet files with a subject column",
    "gsm8k": "gsm8k/train.jsonl and gsm8k/test.jsonl (or .parquet)",
    "winogrande": "winogrande/train_xl.jsonl and winogrande/dev.jsonl (or .parquet)",
    "arc": "ARC-Challenge-Train.jsonl, ARC-Challenge-Dev.jsonl and ARC-Challenge-Test.jsonl (or .parquet)",
}
OTHER_SIZES = {"xs", "s", "m", "l", "debiased"}
"""Of WinoGrande's training sets only XL is read."""
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def files(dataset: str, split: str, folder: Path) -> list[Path]:
    """Returns the files of a split, all of one format, in order; none if there are none.

    Raises:
      UsageError: several different files, none of which is a part of the others.
    """
    found = [path for path in _candidates(dataset, folder) if _split_of(dataset, path, folder) == split]
    suffix = next((s for s in SUFFIXES if any(path.suffix == s for path in found)), None)
    found = sorted(path for path in found if path.suffix == suffix)
    if dataset == "mmlu":
        return [path for path in found if "all" not in _words(path.parent.name)] or found
    names = {path.parent / SHARD.sub("", path.stem) for path in found}
    if len(names) > 1 and suffix != ".arrow":
        several = ", ".join(str(path) for path in found[:3])
        raise UsageError(f"{dataset}: several files could be its {split} split, keep one: {several}")
    return found


def splits(dataset: str, folder: Path) -> list[str]:
    """Returns the splits that have files."""
    found = {_split_of(dataset, path, folder) for path in _candidates(dataset, folder)}
    return sorted(split for split in found if split)


def subject(path: Path) -> str:
    """Returns MMLU's subject by the name of a file (SUBJECT_test.csv) or of its folder."""
    stem = re.sub(r"_(test|val|dev)$", "", path.stem)
    return path.parent.name if path.parent.name in GROUP_OF else stem


def _candidates(dataset: str, folder: Path) -> list[Path]:
    """Files of a readable format that belong to the dataset."""
    paths = (path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    return [path for path in paths if not _hidden(path, folder) and _belongs(dataset, path, folder)]


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _belongs(dataset: str, path: Path, folder: Path) -> bool:
    text = f"{folder.name}/{path.relative_to(folder)}".lower()
    if dataset == "winogrande" and OTHER_SIZES & set(_words(text)):
        return False
    if dataset == "mmlu" and (subject(path) in GROUP_OF or path.parent.name == "auxiliary_train"):
        return True
    return bool(re.search(MARKS[dataset], text))


def _split_of(dataset: str, path: Path, folder: Path) -> str | None:
    """By the file's own name, or else that of the nearest folder that names a split."""
    aliases = MMLU_ALIASES if dataset == "mmlu" else ALIASES
    for name in (path.stem, *reversed(path.relative_to(folder).parts[:-1])):
        words = _words(name)
        for split, known in aliases.items():
            if any(word in known for word in words):
                return split
    return None


def _words(text: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", text.lower())
