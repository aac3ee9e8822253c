"""Prepared TFDS folders, read by `tfds.data_source` without TensorFlow or a network.

TFDS stores the records of most sets in the order of a hash: few-shot draws and limited runs then see other records than
from the public files. Our own MMLU builder keeps the files' order.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config.overrides import UsageError
from experiments.data.jsonl import Line
from experiments.tasks.types import Record

NAMES = {"mmlu": "mmlu_csv", "gsm8k": "gsm8k", "winogrande": "winogrande", "arc": "ai2_arc/ARC-Challenge"}
INSTALL = "pip install tensorflow-datasets (the extra tfds)"
VERSION = re.compile(r"\d+\.\d+\.\d+")


def home(dataset: str, folder: Path) -> Path | None:
    """Returns the newest prepared version of a dataset in `folder`: NAME/VERSION/dataset_info.json."""
    found = folder.glob(f"{NAMES[dataset]}/*/dataset_info.json")
    versions = [path.parent for path in found if VERSION.fullmatch(path.parent.name)]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read(home: Path, dataset: str, split: str) -> list[Line]:
    """Reads the records of a split, text as bytes; none if there is no such split.

    Raises:
      UsageError: TFDS is not installed, or the folder cannot be read without TensorFlow, as in a format other than
        array_record.
    """
    name = {"train": "train_xl"}.get(split, split) if dataset == "winogrande" else split
    name = "auxiliary_train" if (dataset, split) == ("mmlu", "train") else name
    try:
        source = _source(home, name)
    except UsageError:
        raise
    except Exception as error:  # TFDS raises many kinds, some of which only TensorFlow defines
        raise UsageError(f"{home}: TFDS cannot read it ({' '.join(str(error).split())[:200]})") from None
    return [Line(source[i], f"{home}: {name} {i}") for i in range(len(source))]


def _source(home: Path, split: str) -> Sequence[Record]:
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise UsageError(f"{home}: reading it needs {error.name}: {INSTALL}") from None
    builder = tfds.builder_from_directory(home)
    if split not in builder.info.splits:
        return []
    if builder.info.file_format.value != "array_record":
        kind = builder.info.file_format.value
        raise UsageError(
            f"{home}: prepared as {kind}, which needs TensorFlow: prepare it with file_format array_record"
        )
    return builder.as_data_source(split=split)
