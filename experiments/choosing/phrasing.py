"""The phrasing of an answer after a chain of thought that does best on the validation split."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.config.overrides import UsageError
from experiments.config.schema import plain_name
from experiments.tasks import phrasings

RECORDS = 64
"""Validation records that phrasings are compared on."""


class Tried(NamedTuple):
    """One phrasing, measured."""

    name: str
    strict: float
    """Part of the records whose answer is right where the phrasing puts it."""
    flexible: float
    records: int


def wants_choice(chain: str | None, tasks: Sequence[str]) -> list[str]:
    """Returns the tasks whose phrasing is to be chosen.

    Raises:
      UsageError: in one line, for a setting that cannot be read.
    """
    return [task for task in tasks if _chosen(chain, task) == phrasings.AUTO]


def choose(chain: str | None, tasks: Sequence[str], measure: Callable[[str, str], Tried]) -> str | None:
    """Returns `data.chain` with every `auto` replaced by the phrasing that is right most often, and says why.

    Args:
      chain: the setting.
      tasks: benchmarks, also after pocket:.
      measure: (benchmark as given, phrasing) -> how well it does.

    Raises:
      UsageError: a phrasing is unknown, or a benchmark has none.
    """
    if not wants_choice(chain, tasks):
        return chain
    found: dict[str, str] = {}
    for task in tasks:
        wanted, plain = _chosen(chain, task), plain_name(task)
        if wanted == phrasings.AUTO:
            tried = [measure(task, name) for name in phrasings.BY_TASK[plain]]
            wanted = best(tried).name
            print(told(plain, tried), flush=True)
        if wanted is not None:
            found[plain] = wanted
    return ",".join(f"{task}={name}" for task, name in found.items())


def best(tried: Sequence[Tried]) -> Tried:
    """Returns the phrasing with the most right answers, of equal ones that with more right ones anywhere in the text,
    then the first."""
    return max(tried, key=lambda one: (one.strict, one.flexible))


def told(task: str, tried: Sequence[Tried]) -> str:
    """Returns the line that says what was chosen, and how the others did."""
    first = best(tried)
    others = ", ".join(f"{one.name} {100 * one.strict:.0f}%" for one in tried if one is not first)
    right = f"{100 * first.strict:.0f}% right on {first.records} validation records"
    return f"data.chain auto: {task}={first.name} ({right}; {others})"


def _chosen(chain: str | None, task: str) -> str | None:
    plain = plain_name(task)
    try:
        wanted = phrasings.chosen(chain, plain)
    except ValueError as error:
        raise UsageError(f"data.chain: {error}") from None
    if wanted == phrasings.AUTO and plain not in phrasings.BY_TASK:
        known = ", ".join(phrasings.BY_TASK)
        raise UsageError(f"data.chain: {task!r} has no phrasings of answers after a chain (benchmarks: {known})")
    return wanted
