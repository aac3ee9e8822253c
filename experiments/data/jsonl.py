"""Local files of a user's own task: pairs, texts, messages or instructions, one JSON object on each line."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.config.overrides import UsageError
from experiments.data.text_file import read_text
from experiments.tasks.types import Record
from rwkv7_jax.checkpoint.files import one_line
from state_tuning.core.conversations import Exchange, Template, cut_at, exchanges, from_messages

R = TypeVar("R")

PAIR, TEXT, MESSAGES, SHAREGPT = ("prompt", "completion"), ("text",), ("messages",), ("conversations",)
ALPACA = ("instruction", "output")
FORMS = (PAIR, TEXT, MESSAGES, SHAREGPT)
"""Keys of a record; it has those of one form, and others are not used. `ALPACA` counts where both are there."""
FURTHER = {MESSAGES: ("system",), SHAREGPT: ("system",), ALPACA: ("input", "system")}
"""Texts that are read too where they are there."""
WANTED = 'a line needs "prompt" and "completion", or "text", or "messages", or "instruction" and "output"'
GIVEN, ANSWERED = ("prompt", "question", "instruction", "query", "input"), ("answer", "output", "response", "chosen")
"""Keys of other tools' dialects, for advice."""


class Pair(NamedTuple):
    """What the model is given and what it should say; plain text is a completion of the empty prompt."""

    prompt: str
    completion: str


class Talk(Pair):
    """A conversation whose answers are known by their places; equal to the plain text in everything else."""

    answers: tuple[tuple[int, int], ...]
    """As in `state_tuning.core.conversations.Conversation`."""

    def __new__(cls, text: str, answers: tuple[tuple[int, int], ...]) -> "Talk":
        """Returns the conversation."""
        self = super().__new__(cls, "", text)
        self.answers = answers
        return self


def exchanges_of(pair: Pair) -> list[Exchange]:
    """Returns the exchanges of a conversation; none of another text or of a prompt with its completion."""
    if isinstance(pair, Talk):
        return cut_at(pair.completion, pair.answers)
    return [] if pair.prompt else exchanges(pair.completion)


class Line(NamedTuple):
    """One record and where it stands, FILE:LINE."""

    record: Record
    where: str


def read_lines(path: str | Path) -> list[Line]:
    """Reads all records of a jsonl file (blank lines skipped) or of a JSON array; gzip and the Unicode encodings too.

    Raises:
      UsageError: one line with file and line number: no such file, an empty one, not text, not a JSON object.
    """
    path = user_path(path)
    found = []
    for item in scan(path, read_text(path)):
        if isinstance(item, UsageError):
            raise item
        found.append(item)
    return found


def user_path(path: str | Path) -> Path:
    """Returns the path with its `~` replaced.

    Raises:
      UsageError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"no file {path} ({error})") from None


def scan(path: Path, text: str) -> Iterator[Line | UsageError]:
    """Yields the records of a file's text in order, and for each that is damaged what is wrong with it.

    Raises:
      UsageError: one line, for what concerns the whole file.
    """
    lines = [(number, line.removeprefix("\ufeff")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty; write one JSON object on each line")
    number, first = lines[0]
    if first.lstrip()[0] == "[":
        yield from _array(path, text, whole=len(lines) == 1)
        return
    if first.strip() == "{" or (len(lines) > 1 and _is_open(first)):
        raise UsageError(f"{path}:{number}: a JSON object over several lines; write each record on one line")
    for number, line in lines:
        try:
            yield Line(_parse(line, f"{path}:{number}"), f"{path}:{number}")
        except UsageError as error:
            yield error


def _is_open(line: str) -> bool:
    """Whether a line ends inside a JSON object, between its parts."""
    return line.lstrip().startswith("{") and line.rstrip()[-1] in "{[," and not line.rstrip().endswith("},")


def _array(path: Path, text: str, *, whole: bool) -> Iterator[Line | UsageError]:
    """The records of a JSON array."""
    where = f"{path}:1" if whole else str(path)
    values = _loads(text.removeprefix("\ufeff"), where)
    assert isinstance(values, list)
    if not values:
        raise UsageError(f"{path} is empty; write one JSON object on each line")
    if whole and not any(isinstance(value, dict) for value in values):
        raise UsageError(f"{where}: a JSON object is wanted, not list")
    for number, value in enumerate(values, 1):
        place = f"{path}: record {number}"
        wrong = UsageError(f"{place}: a JSON object is wanted, not {type(value).__name__}")
        yield Line(value, place) if isinstance(value, dict) else wrong


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
    """Returns the keys among `FORMS` that a record has, or `ALPACA`; null counts as absent.

    The text and the prompt that a set of instructions or messages has besides are not used.

    Raises:
      ValueError: in one line: keys of none, of several, or only a part.
    """
    have = [key for key, value in record.items() if value is not None]
    if {*ALPACA} <= {*have} and not {"completion", *MESSAGES, *SHAREGPT} & {*have}:
        return ALPACA
    found = [keys for keys in FORMS if any(key in have for key in keys)]
    if len(found) == 2 and PAIR in found and TEXT not in found and "completion" not in have:
        found.remove(PAIR)
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
    renamed = "" if given == "prompt" else f'{given!r} to "prompt" and '
    return f'; rename {renamed}{answered!r} to "completion"'


def to_pair(line: Line, template: Template = "rwkv") -> Pair:
    """Returns what a record of any form is for the model.

    Args:
      line: the record.
      template: how turns become text.

    Raises:
      UsageError: with file and line: missing keys or too many, values that are not strings, an unknown role, an empty
        completion or answer.
    """
    record, where = line
    try:
        keys = form(record)
        if keys in (MESSAGES, SHAREGPT):
            return _talk(keys[0], record[keys[0]], record.get("system"), template)
        for key in (*keys, *FURTHER.get(keys, ())):
            if not isinstance(value := record.get(key), str) and (value is not None or key in keys):
                advice = '; give turns as "messages"' if isinstance(value, list) else ""
                raise ValueError(f"{key!r} must be a string, not {type(value).__name__}{advice}")
        if not record[keys[-1]]:
            raise ValueError(f"the {keys[-1]} is empty, there is nothing to learn")
        if keys == ALPACA:
            return _talk("output", _instruction(record), record.get("system"), template)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return Pair("" if keys == TEXT else record["prompt"], record[keys[-1]])


def _instruction(record: Record) -> list[dict[str, str]]:
    """Alpaca's record as messages."""
    asked = "\n".join(text for key in ("instruction", "input") if (text := (record.get(key) or "").strip()))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]


def _talk(key: str, value: object, system: object, template: Template) -> Talk:
    """The turns, after a system prompt that stands beside them."""
    try:
        first = [{"role": "system", "content": system}] if isinstance(system, str) else []
        return Talk(*from_messages([*first, *value] if isinstance(value, list) else value, template))
    except ValueError as error:
        raise ValueError(f"{key!r}: {error}") from None


def check_answers(pair: Pair, where: str) -> Pair:
    """Returns the pair, if it is not a conversation without any answer.

    Raises:
      UsageError: it is, with file and line.
    """
    parts = exchanges_of(pair)
    if parts and not any(part.answer for part in parts):
        raise UsageError(f"{where}: the conversation has no answer, there is nothing to learn")
    return pair


def unused_keys(lines: Iterable[Line]) -> Counter[str]:
    """Counts the records with each key that is not read."""
    found = Counter[str]()
    for record, _ in lines:
        keys = form(record)
        read = {*keys, *(key for key in FURTHER.get(keys, ()) if isinstance(record.get(key), str))}
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
