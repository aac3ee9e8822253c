"""What an examination finds, one line each, and the verdict."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rwkv7_jax.terminal import readable


class Finding(NamedTuple):
    """One thing that is wrong, or that is good to know."""

    area: str
    """What it is about: machine, checkpoint, state, data."""
    text: str
    """What is wrong, where, and what to do."""
    fault: bool = True
    """Whether something will go wrong with it."""

    @property
    def line(self) -> str:
        """As it is printed."""
        return readable(f"{'FAULT' if self.fault else 'note'}  {self.area}: {self.text}")


def verdict(findings: Iterable[Finding]) -> str:
    """Returns the last line of a report.

    Example:
      >>> verdict([Finding("data", "empty"), Finding("machine", "busy", fault=False)])
      'RESULT: FAIL (1)'
    """
    faults = sum(one.fault for one in findings)
    return f"RESULT: FAIL ({faults})" if faults else "RESULT: PASS"


def lines(findings: Sequence[Finding]) -> list[str]:
    """Returns the faults, then the notes."""
    return [one.line for one in sorted(findings, key=lambda one: not one.fault)]


def as_json(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Returns the findings as JSON has them."""
    return [one._asdict() for one in findings]
