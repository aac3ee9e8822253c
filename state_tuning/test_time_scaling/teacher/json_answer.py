"""An answer in JSON from a server that may send anything: read within bounds, and its parts checked one by one."""

import json
import math
import re

from state_tuning.test_time_scaling.teacher.foreign_text import HIDDEN, quoted

Json = dict[str, object]
"""An object of JSON, as a server sends it."""
VALUES = 400_000
"""Most separators in an answer, which bound the memory that its values take (some tens of MB)."""
DEPTH = 64
"""Deepest nesting of an answer."""
SHORTEST_KEY = 6
"""Keys below this length are words, such as those that local servers ask for, and stay in answers."""
MOST_TOKENS = 10**8
"""In one exchange."""
HALF = "[\\ud800-\\udfff]"
"""Characters that no encoding has."""
LEAST = -100.0
"""Log-probabilities below count as this: servers write -9999 or -Infinity for what they cut off."""
ROUNDING = 1e-3
"""Log-probabilities are at most this."""


class MalformedAnswer(ValueError):
    """An answer that is not what was asked for; another attempt may give one."""


class UnusableAnswer(ValueError):
    """An answer that is not what was asked for, and will not be however often one asks."""


def parse(text: bytes, key: str = "") -> Json:
    """Returns the object in `text`, cleaned: without the key, half characters and numbers that JSON does not have.

    Args:
      text: the body of an answer.
      key: replaced in all strings if it has at least `SHORTEST_KEY` characters.

    Raises:
      MalformedAnswer: it is not an object of JSON.
      UnusableAnswer: it holds too many values, or is nested too deeply.
    """
    if sum(map(text.count, (b",", b":", b"[", b"{"))) > VALUES:
        raise UnusableAnswer(f"the answer has more than {VALUES:,} values")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedAnswer(f"not JSON: {quoted(text, key)}") from None
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"a JSON {type(answer).__name__} instead of an object")
    _clean(answer, key if len(key) >= SHORTEST_KEY else "")
    return answer


def part(value: object, *path: str | int) -> object:
    """Returns what lies at `path` of an answer. Raises: MalformedAnswer if there is nothing."""
    for step in path:
        try:
            value = value[step]  # pyright: ignore[reportIndexIssue]
        except (KeyError, IndexError, TypeError):
            raise MalformedAnswer(f"it has no {'.'.join(map(str, path))}") from None
    return value


def text_of(content: object) -> str | None:
    """Returns the text of a message: a string, or parts of which those with text are joined; None without one.

    Raises:
      MalformedAnswer: it is something else.
    """
    if isinstance(content, list):
        texts = [one.get("text") if isinstance(one, dict) else one for one in content]
        if all(text is None or isinstance(text, str) for text in texts):
            return "".join(text for text in texts if isinstance(text, str))
    elif content is None or isinstance(content, str):
        return content
    raise MalformedAnswer(f"the text is a JSON {type(content).__name__}")


def tokens_used(answer: Json) -> int:
    """Returns the tokens that a server says it read and wrote. Raises: MalformedAnswer for what cannot be one."""
    usage = part(answer, "usage")
    written = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return _count(part(usage, "prompt_tokens")) + (0 if written is None else _count(written))


def log_probability(value: object) -> float:
    """Returns a log-probability from LEAST to 0, nats. Raises: MalformedAnswer for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        raise MalformedAnswer(f"{_shown(value)} is not a log-probability")
    return float(min(max(value, LEAST), 0.0))


def _count(value: object) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not 0 <= value <= MOST_TOKENS:
        raise MalformedAnswer(f"a usage of {_shown(value)} tokens")
    return int(value)


def _shown(value: object) -> str:
    """A value of JSON in a message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "a huge number"
    return str(value) if isinstance(value, bool | int | float | None) else quoted(str(value), limit=60)


def _clean(root: Json, key: str) -> None:
    """Cleans all values of an answer where they lie."""
    unclean = re.compile(f"{re.escape(key)}|{HALF}" if key else HALF)
    waiting: list[tuple[Json | list[object], int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > DEPTH:
            raise UnusableAnswer(f"the answer is nested more than {DEPTH} deep")
        if isinstance(node, dict):
            for name in [name for name in node if unclean.search(name)]:
                node[_cleaned(name, key)] = node.pop(name)
        for place, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
            if isinstance(value, str):
                if unclean.search(value):
                    node[place] = _cleaned(value, key)  # pyright: ignore[reportArgumentType, reportCallIssue]
            elif isinstance(value, dict | list):
                waiting.append((value, depth + 1))
            elif isinstance(value, float) and not math.isfinite(value):
                node[place] = -9999.0 if value < 0 else None  # pyright: ignore[reportArgumentType, reportCallIssue]


def _cleaned(text: str, key: str) -> str:
    """The text with whole characters, and without the key."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace(key, HIDDEN) if key else whole
