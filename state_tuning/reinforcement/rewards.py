"""Rewards that a program can check: the last number, the last letter, a pattern, or a function of one's own.

    number                 1 where the last number of the answer has the value of the last number of the right one
    letter                 1 where the last letter of the answer that stands alone is that of the right one
    regex:PATTERN          1 where the pattern is found in the answer; {answer} in it stands for the right one
    module:function        what the function returns; also path/to/file.py:function

Texts are data: nothing of them is run, and of what a reward names only the one function is called.
"""

import hashlib
import importlib
import importlib.util
import math
import numbers
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

__all__ = ["Answer", "Reward", "RewardError", "last_letter", "last_number", "make_reward"]

LARGEST = 1e6
"""Of a reward, either way, so that sums of rewards stay exact enough."""
LETTERS = "ABCDEFGHIJ"
SHOWN = 200
"""Characters of a text in a message."""
_SIGN = r"(?:(?<![\w.)\]])[-\u2212]\$?|\$[-\u2212])?"
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(rf"({_SIGN})({_DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)")
_LETTER = re.compile(r"(?<![A-Za-z'\u2019])(?:[A-HJ](?![A-Za-z'\u2019])|I(?=[^\w]*\Z))")
_FUNCTION = re.compile(r"(?P<module>[^:]+):(?P<name>[A-Za-z_]\w*)", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
ADVICE = "give number, letter, regex:PATTERN, module:function or file.py:function"


class RewardError(ValueError):
    """A reward that cannot be had, told in one line: what was wrong, and of which answer.

    Example:
      >>> try:
      ...     make_reward("numbr")
      ... except RewardError as error:
      ...     print(error)
      no reward 'numbr': give number, letter, regex:PATTERN, module:function or file.py:function
    """


class Answer(NamedTuple):
    """What a reward looks at.

    Example:
      >>> answer = Answer("2+2=", " 4", gold="4", record={"level": "easy"})
      >>> make_reward("number").score(answer)
      1.0
    """

    prompt: str
    """The text that was asked."""
    completion: str
    """The text that the model wrote."""
    gold: str = ""
    """The right answer as the user's record has it; empty: the record has none."""
    record: Mapping[str, object] = {}
    """All of the user's record."""


class Reward(NamedTuple):
    """How answers are judged; `make_reward` makes those with a name, and any function may be one.

    Example:
      >>> short = Reward("short", lambda answer: float(len(answer.completion) < 10))
      >>> short.score(Answer("2+2=", " 4"))
      1.0
    """

    name: str
    """As the user wrote it."""
    score: Callable[[Answer], float]
    """The reward of an answer, finite. Raises: RewardError."""
    unusable: Callable[[str], str | None] = lambda gold: None
    """What a right answer lacks, in a few words; None if the reward can be had with it."""
    source: str = ""
    """SHA-256 of the file of a user's function."""


def make_reward(text: str) -> Reward:
    """Returns the reward that a text names, see the module.

    Args:
      text: number, letter, regex:PATTERN, module:function or file.py:function. A module is looked for in the working
        directory too. The function gets (prompt, completion, record), two texts and a mapping, and returns a number.

    Returns:
      The reward.

    Raises:
      RewardError: in one line: an unknown name, a pattern that is none, or a function that cannot be had.

    Example:
      >>> make_reward("number").score(Answer("2+2=", "so it is 4.0", "#### 4"))
      1.0
      >>> make_reward("regex:^ ?{answer}$").score(Answer("2+2=", " 4", "4"))
      1.0
    """
    text = text.strip()
    if text == "number":
        return Reward(text, _by_number, lambda gold: None if last_number(gold) is not None else "number")
    if text == "letter":
        return Reward(text, _by_letter, lambda gold: None if last_letter(gold) else "letter that stands alone")
    if text.startswith("regex:"):
        return _pattern(text, text.removeprefix("regex:"))
    if found := _FUNCTION.fullmatch(text):
        function, home = _function(text, found["module"], found["name"])
        return Reward(text, _called(text, function), source=_source(home))
    raise RewardError(f"no reward {shown(text)}: {ADVICE}")


def last_number(text: str) -> Decimal | None:
    """Finds the value of the last number of a text.

    Args:
      text: any text; commas between thousands, a decimal point, a dollar sign and a minus sign are read.

    Returns:
      The exact value; None if there is no number.

    Example:
      >>> last_number("it costs $1,250.50."), last_number("5-3 = 2"), last_number("no")
      (Decimal('1250.50'), Decimal('2'), None)
    """
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    found = matches[0]
    value = Decimal(found[2].replace(",", ""))
    return value.copy_negate() if found[1].strip("$") else value


def last_letter(text: str) -> str | None:
    """Finds the last capital letter from A to J that stands alone.

    "I" counts at the end of the text only, as elsewhere it may be the word.

    Args:
      text: any text.

    Returns:
      The letter; None if there is none.

    Example:
      >>> last_letter(" It is 7, so Tom took B."), last_letter("A or (C)"), last_letter("Bob")
      ('B', 'C', None)
    """
    matches = deque(_LETTER.finditer(text), maxlen=1)
    return matches[0][0] if matches else None


def shown(text: str) -> str:
    """Returns a text from outside as it stands in a message: by `repr`, long ones cut."""
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r} (cut)"


def _by_number(answer: Answer) -> float:
    said, right = last_number(answer.completion), last_number(answer.gold)
    return float(said is not None and said == right)


def _by_letter(answer: Answer) -> float:
    said = last_letter(answer.completion)
    return float(said is not None and said == last_letter(answer.gold))


def _pattern(text: str, pattern: str) -> Reward:
    try:
        re.compile(pattern.replace("{answer}", "x"))
    except (re.error, RecursionError, OverflowError) as error:
        raise RewardError(f"{shown(text)} is not a regular expression ({error})") from None
    if not pattern:
        raise RewardError("regex: has no pattern; it would be found in every answer")
    fixed = "{answer}" not in pattern

    def score(answer: Answer) -> float:
        wanted = pattern if fixed else pattern.replace("{answer}", re.escape(answer.gold.strip()))
        return float(re.search(wanted, answer.completion) is not None)

    return Reward(text, score, lambda gold: None if fixed or gold.strip() else "text")


def _function(text: str, module: str, name: str) -> tuple[Callable[..., object], ModuleType]:
    """The user's function and its module.

    Raises:
      RewardError: there is none.
    """
    if module.endswith(".py"):
        home = _from_file(text, Path(module).expanduser())
    elif _MODULE.fullmatch(module):
        home = _imported(text, module)
    else:
        raise RewardError(f"no reward {shown(text)}: {ADVICE}")
    found = getattr(home, name, None)
    if not callable(found):
        raise RewardError(f"reward {shown(text)}: {module} has no function {name}")
    return found, home


def _source(home: ModuleType) -> str:
    path = getattr(home, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def _imported(text: str, module: str) -> ModuleType:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward {shown(text)}: cannot import {module} ({_told(error)})") from None
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _from_file(text: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"reward {shown(text)}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward {shown(text)}: {path} is not a Python file")
    home = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(home)
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward {shown(text)}: cannot import {path} ({_told(error)})") from None
    return home


def _called(text: str, function: Callable[..., object]) -> Callable[[Answer], float]:
    """The user's function, with what it returns checked."""

    def score(answer: Answer) -> float:
        where = f"for the answer {shown(answer.completion)}"
        try:
            found = function(answer.prompt, answer.completion, answer.record)
        except (Exception, SystemExit) as error:
            raise RewardError(f"reward {shown(text)} raised {_told(error)} {where}") from None
        if not isinstance(found, numbers.Real):
            raise RewardError(f"reward {shown(text)} returned {type(found).__name__}, not a number, {where}")
        try:
            value = float(found)
        except OverflowError:
            value = math.inf
        if not abs(value) <= LARGEST:
            raise RewardError(f"reward {shown(text)} returned {value}, not a number up to {LARGEST:g}, {where}")
        return value

    return score


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(' '.join(str(error).split()))}"
