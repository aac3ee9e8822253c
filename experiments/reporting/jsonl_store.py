"""Records as JSON, a line each with its checksum, in a file that only grows.

What a crash leaves of the last line is dropped. A damaged line is left out, with a warning that names it, so that what
it held is computed again.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from experiments.reporting.json_text import json_text
from rwkv7_jax import checksums
from rwkv7_jax.checkpoint.files import naming, write_text

Record: TypeAlias = dict[str, object]
Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]
"""What a record has to have, by type."""
FieldsOf: TypeAlias = Fields | Callable[[Record], Fields]
"""That of every record, or of each; a ValueError says what else is wrong with one."""


class Found(NamedTuple):
    """What is in a file."""

    records: list[Record]
    """The sound ones, in order."""
    damaged: list[str]
    """`line 3: it differs from its checksum`, one for each other line."""


def scan(path: Path, fields: FieldsOf | None = None) -> Found:
    """Returns the sound records of a file, and what is wrong with the others; nothing if there is no file.

    Raises:
      OSError: the file cannot be read.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    found, sealed = Found([], []), False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.records.append(_checked(checksums.unseal(line, always=sealed), fields or {}))
            sealed |= f'"{checksums.KEY}"'.encode() in line
        except ValueError as error:
            if number < len(lines):
                found.damaged.append(f"line {number}: {error}")
    return found


def read(path: Path, fields: FieldsOf | None = None, lost: str = "left out") -> list[Record]:
    """Returns the sound records of a file in order; none if there is no file.

    Args:
      path: the file.
      fields: what a record has to have.
      lost: what becomes of what damaged lines held, for the warning.

    Raises:
      OSError: the file cannot be read.
    """
    records, damaged = scan(path, fields)
    warn(path, damaged, lost)
    return records


def warn(path: Path, damaged: list[str], lost: str) -> None:
    """Prints a warning if lines of a file are damaged."""
    if damaged:
        lines = "1 line is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        print(f"warning: {path}: {lines} damaged ({damaged[0]}); {lost}", file=sys.stderr)


def append(path: Path, *records: Mapping[str, object], durable: bool = False) -> None:
    """Writes records at the end; `durable`: on the disk before this returns."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(_text(records))
        if durable:
            file.flush()
            os.fsync(file.fileno())


def rewrite(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Writes the whole file atomically."""
    write_text(path, _text(records))


def recover(path: Path, fields: FieldsOf | None = None, lost: str = "computed again") -> list[Record]:
    """Returns the sound records of a file and takes everything else out of it, so that new ones can be added.

    Raises:
      OSError: the file cannot be read or written.
    """
    records = read(path, fields, lost)
    if path.is_file() and path.read_bytes() != _text(records).encode():
        rewrite(path, records)
    return records


def _text(records: Iterable[Mapping[str, object]]) -> str:
    return "".join(checksums.seal(json_text(record)) + "\n" for record in records)


def _checked(record: Record, fields: FieldsOf) -> Record:
    for name, kind in (fields(record) if callable(fields) else fields).items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"it has no {name!r}, or one of another type")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None
    return record
