"""Local jsonl files of a user's own task: {"prompt", "completion"} or {"text"} on each line."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.config.overrides import UsageError
from experiments.tasks.types import Record

R = TypeVar("R")


class Pair(NamedTuple):
    """What the model is given and what it should say; plain text is a completion of the empty prompt."""

    prompt: str
    completion: str


class Line(NamedTuple):
    """One record and where it stands, FILE:LINE."""

    record: Record
    where: str


def read_lines(path: str | Path) -> list[Line]:
    """Reads all records of a jsonl file (UTF-8, blank lines skipped).

    Raises:
      UsageError: one line with file and line number: no such file, an empty one, not text, not a JSON object.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a .jsonl file")
    if not path.is_file():
        raise UsageError(f"no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    lines = enumerate(text.split("\n"), 1)
    found = [Line(_parse(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise UsageError(f"{path} is empty; write one JSON object on each line")
    return found


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UsageError(f"{where}: {half!r} is half of a surrogate pair; remove it") from None
    except RecursionError:
        raise UsageError(f"{where}: brackets are nested too deep; write a flat JSON object") from None
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: a JSON object is wanted, not {type(record).__name__}")
    return record


def to_pair(line: Line) -> Pair:
    """Returns the pair in a {"prompt", "completion"} or {"text"} record.

    Raises:
      UsageError: with file and line: missing keys, values that are not strings, an empty completion.
    """
    record, where = line
    learnt = "text" if "text" in record and "completion" not in record else "completion"
    if learnt == "text":
        record = {"prompt": "", "completion": record["text"]}
    missing = [key for key in ("prompt", "completion") if key not in record]
    if missing:
        lacking, have = " and ".join(map(repr, missing)), ", ".join(record) or "nothing"
        raise UsageError(f'{where}: no {lacking}; a line needs "prompt" and "completion", or "text" (has: {have})')
    for key, name in (("prompt", "prompt"), ("completion", learnt)):
        if not isinstance(record[key], str):
            raise UsageError(f"{where}: {name!r} must be a string, not {type(record[key]).__name__}")
    if not record["completion"]:
        raise UsageError(f"{where}: the {learnt} is empty, there is nothing to learn")
    return Pair(record["prompt"], record["completion"])


def read_pairs(path: str | Path) -> list[Pair]:
    """Reads the pairs of a file, one a line."""
    return [to_pair(line) for line in read_lines(path)]


def hold_out(records: Sequence[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Returns (training, held-out) parts of JSON records; equal ones fall on the same side, whatever their order.

    Raises:
      UsageError: fewer than three different records.
    """
    texts = [json.dumps([seed, record], sort_keys=True) for record in records]
    different = dict(zip(texts, records, strict=True))
    if len(different) < 3:
        few = f"{len(different)} different records, too few to hold some out"
        raise UsageError(f"{few}; give more, or --data.validation FILE")
    order = sorted(different, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = order[: min(max(2, round(fraction * len(order))), len(order) - 1)]
    chosen = set(held)
    train = [record for text, record in zip(texts, records, strict=True) if text not in chosen]
    return train, [different[text] for text in held]
