"""What an answer costs, counted exactly."""

import time
from collections.abc import Sequence
from typing import NamedTuple


class Cost(NamedTuple):
    """Cost of one prompt's answer so far.

    Example:
      >>> Cost(student_tokens=96).plus(Cost(student_tokens=32, teacher_tokens=200))
      Cost(student_tokens=128, teacher_tokens=200, seconds=0.0)
    """

    student_tokens: int = 0
    """Tokens that the student generated: those of every sample, and one for the end of each that ended by itself (end
    token or stop string). Where samples are given choices: those of every choice each time it is drawn or scored."""
    teacher_tokens: int = 0
    """Tokens that the teacher read or generated."""
    seconds: float = 0.0
    """Wall clock of the batch divided by its prompts: they run side by side."""

    def plus(self, other: "Cost") -> "Cost":
        """Adds costs part by part.

        Args:
          other: another cost.

        Returns:
          The sum.
        """
        return Cost(
            self.student_tokens + other.student_tokens,
            self.teacher_tokens + other.teacher_tokens,
            self.seconds + other.seconds,
        )


class Clock:
    """Wall-clock seconds per prompt since the last lap."""

    def __init__(self, prompts: int):
        self.prompts, self.last = prompts, time.perf_counter()

    def lap(self) -> float:
        """Returns the seconds per prompt since the last lap."""
        now = time.perf_counter()
        seconds, self.last = (now - self.last) / self.prompts, now
        return seconds

    def charge(self, spent: Sequence[Cost], cost: Sequence[Cost]) -> list[Cost]:
        """Returns spent + cost + the seconds since the last lap, prompt by prompt."""
        seconds = Cost(seconds=self.lap())
        return [a.plus(b).plus(seconds) for a, b in zip(spent, cost, strict=True)]
