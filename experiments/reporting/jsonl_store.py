"""Records as JSON, a line each, in a file that only grows: what a crash leaves of the last line is dropped."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

Record: TypeAlias = dict[str, object]


def read(path: Path) -> list[Record]:
    """Returns the complete records of a file in order; none if there is no file.

    Raises:
      ValueError: a complete line is not JSON.
    """
    return [json.loads(line) for line in _complete(path)]


def append(path: Path, *records: Mapping[str, object], durable: bool = False) -> None:
    """Writes records at the end; `durable`: on the disk before this returns."""
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
        if durable:
            file.flush()
            os.fsync(file.fileno())


def rewrite(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Writes the whole file atomically."""
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(beside, path)


def recover(path: Path) -> list[Record]:
    """Returns the complete records of a file and cuts off an incomplete last line, so that new ones can be added."""
    records = read(path)
    if path.is_file() and path.read_text() != "".join(_complete(path)):
        rewrite(path, records)
    return records


def _complete(path: Path) -> list[str]:
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("}\n")]
