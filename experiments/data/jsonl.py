"""Local files of a user's own task: {"prompt", "completion"}, {"text"} or {"messages"} on each line."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.config.overrides import UsageError
from experiments.data.text_file import read_text
from experiments.tasks.types import Record
from rwkv7_jax.checkpoint.files import one_line
from state_tuning.core.conversations import exchanges, from_messages

R = TypeVar("R")

PAIR, TEXT, MESSAGES, SHAREGPT = ("prompt", "completion"), ("text",), ("messages",), ("conversations",)
FORMS = (PAIR, TEXT, MESSAGES, SHAREGPT)
"""Keys of a record; it has those of one form, and others are not used."""
WANTED = 'a line needs "prompt" and "completion", or "text", or "messages"'
GIVEN, ANSWERED = ("prompt", "question", "instruction", "query", "input"), ("answer", "output", "response", "chosen")
"""Keys of other tools' dialects, for advice."""


class Pair(NamedTuple):
    """What the model is given and what it should say; plain text is a completion of the empty prompt."""

    prompt: str
    completion: str


class Line(NamedTuple):
    """One record and where it stands, FILE:LINE."""

    record: Record
    where: str


def read_lines(path: str | Path) -> list[Line]:
    """Reads all records of a jsonl file (blank lines skipped) or of a JSON array; gzip and the Unicode encodings too.

    Raises:
      UsageError: one line with file and line number: no such file, an empty one, not text, not a JSON object.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"no file {path} ({error})") from None
    text = read_text(path)
    lines = [(number, line.removeprefix("\ufeff")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty; write one JSON object on each line")
    number, first = lines[0]
    if first.lstrip()[0] == "[":
        return _array(path, text, whole=len(lines) == 1)
    if first.strip() == "{" or (len(lines) > 1 and _is_open(first)):
        raise UsageError(f"{path}:{number}: a JSON object over several lines; write each record on one line")
    return [Line(_parse(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines]


def _is_open(line: str) -> bool:
    """Whether a line ends inside a JSON object, between its parts."""
    return line.lstrip().startswith("{") and line.rstrip()[-1] in "{[," and not line.rstrip().endswith("},")


def _array(path: Path, text: str, *, whole: bool) -> list[Line]:
    """The records of a JSON array."""
    where = f"{path}:1" if whole else str(path)
    values = _loads(text.removeprefix("\ufeff"), where)
    assert isinstance(values, list)
    if wrong := [type(value).__name__ for value in values if not isinstance(value, dict)]:
        raise UsageError(f"{where}: a JSON object is wanted, not {'list' if whole else wrong[0]}")
    if not values:
        raise UsageError(f"{path} is empty; write one JSON object on each line")
    return [Line(value, f"{path}: record {number}") for number, value in enumerate(values, 1)]


def _parse(line: str, where: str) -> Record:
    record = _loads(line, where)
    if not isinstance(record, dict):
        raise UsageError(f"{where}: a JSON object is wanted, not {type(record).__name__}")
    return record


def _loads(text: str, where: str) -> object:
    """A JSON value without half surrogates and keys that stand twice in an object."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UsageError(f"{where}: {half!r} is half of a surrogate pair; remove it") from None
    except RecursionError:
        raise UsageError(f"{where}: brackets are nested too deep; write a flat JSON object") from None
    except json.JSONDecodeError as error:
        advice = "; leave out the comma after the object" if text.rstrip().endswith("},") else ""
        advice = advice or ("" if text.lstrip()[:1] in "{[" else "; write one JSON object on each line")
        raise UsageError(f"{where}: not JSON ({error}){advice}") from None
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({one_line(str(error), 200)})") from None
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in an object")
    return found


def form(record: Record) -> tuple[str, ...]:
    """Returns the keys among `FORMS` that a record has; null counts as absent.

    Raises:
      ValueError: in one line: keys of none, of several, or only a part.
    """
    have = [key for key, value in record.items() if value is not None]
    found = [keys for keys in FORMS if any(key in have for key in keys)]
    if len(found) > 1:
        mixed = [key for keys in found for key in keys if key in have]
        raise ValueError(f"{' and '.join(map(repr, mixed))} on one line: what is learnt? {WANTED}")
    keys = found[0] if found else PAIR
    if missing := [key for key in keys if key not in have]:
        names = [key if record[key] is not None else f"{key}: null" for key in record]
        lacking, shown = " and ".join(map(repr, missing)), one_line(", ".join(names) or "nothing", 200)
        raise ValueError(f"no {lacking}; {WANTED} (has: {shown}){_advice(have)}")
    return keys


def _advice(have: Sequence[str]) -> str:
    """What to rename, where the keys are those of another tool."""
    given, answered = (next((key for key in keys if key in have), None) for keys in (GIVEN, ANSWERED))
    if not given or not answered:
        return ""
    what = "instruction and input, joined," if {"instruction", "input"} <= {*have} else repr(given)
    renamed = "" if given == "prompt" else f'{what} to "prompt" and '
    return f'; rename {renamed}{answered!r} to "completion"'


def to_pair(line: Line) -> Pair:
    """Returns the pair in a {"prompt", "completion"}, {"text"} or {"messages"} record.

    Raises:
      UsageError: with file and line: missing keys or too many, values that are not strings, an empty completion.
    """
    record, where = line
    try:
        keys = form(record)
        if keys in (MESSAGES, SHAREGPT):
            return Pair("", _messages(keys[0], record[keys[0]], record.get("system")))
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    for key in keys:
        if not isinstance(record[key], str):
            advice = '; give turns as "messages"' if isinstance(record[key], list) else ""
            raise UsageError(f"{where}: {key!r} must be a string, not {type(record[key]).__name__}{advice}")
    if not record[keys[-1]]:
        raise UsageError(f"{where}: the {keys[-1]} is empty, there is nothing to learn")
    return Pair("" if keys == TEXT else record["prompt"], record[keys[-1]])


def _messages(key: str, value: object, system: object) -> str:
    """The turns, after a system prompt that stands beside them."""
    try:
        first = [{"role": "system", "content": system}] if isinstance(system, str) else []
        return from_messages([*first, *value] if isinstance(value, list) else value)
    except ValueError as error:
        raise ValueError(f"{key!r}: {error}") from None


def check_answers(pair: Pair, where: str) -> Pair:
    """Returns the pair, if it is not a conversation without any answer.

    Raises:
      UsageError: it is, with file and line.
    """
    parts = [] if pair.prompt else exchanges(pair.completion)
    if parts and not any(part.answer for part in parts):
        raise UsageError(f"{where}: the conversation has no answer, there is nothing to learn")
    return pair


def unused_keys(lines: Iterable[Line]) -> Counter[str]:
    """Counts the records with each key that is not read."""
    found = Counter[str]()
    for record, _ in lines:
        read = {key for keys in FORMS for key in keys}
        read |= {"system"} if form(record) in (MESSAGES, SHAREGPT) and isinstance(record.get("system"), str) else set()
        found.update(key for key, value in record.items() if value is not None and key not in read)
    return found


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
