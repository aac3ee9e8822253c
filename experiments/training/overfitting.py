"""When a run learns its training data and no more: what is said, and when tuning stops."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments.training import distributed
from experiments.training.metrics_log import MetricsLog, Row
from rwkv7_jax.processes import gather

WORSE = 2
"""Held-out losses in a row above the least from which on a run counts as overfitting."""


class Point(NamedTuple):
    """A step at which the held-out loss was measured."""

    step: int
    held_out: float
    training: float
    """Mean loss of the rows since the point before."""


def points(rows: Iterable[Row]) -> list[Point]:
    """Returns the measurements among rows of metrics, in order."""
    found, since = list[Point](), list[float]()
    for row in rows:
        since.append(row["loss"])
        if "validation_loss" in row:
            found.append(Point(row["step"], row["validation_loss"], sum(since) / len(since)))
            since = []
    return found


def since_least(found: Sequence[Point]) -> tuple[Point, int]:
    """Returns the first point with the least held-out loss, and how many were measured after it."""
    best = min(range(len(found)), key=lambda index: found[index].held_out)
    return found[best], len(found) - 1 - best


def warning(found: Sequence[Point]) -> str | None:
    """Returns what is said at the last point if overfitting shows there, once after each least loss.

    Example:
      >>> warning([Point(1, 0.5, 0.5), Point(2, 0.6, 0.4), Point(3, 0.7, 0.3)])
      'it overfits: the held-out loss is 0.7000 at step 3 and was 0.5000 at step 1, the training loss 0.3000 and 0.5000'
    """
    if not found:
        return None
    best, after = since_least(found)
    last = found[-1]
    if after != WORSE or last.training >= best.training or found[-1 - WORSE].held_out == last.held_out:
        return None
    return (
        f"it overfits: the held-out loss is {last.held_out:.4f} at step {last.step} and was {best.held_out:.4f} at "
        f"step {best.step}, the training loss {last.training:.4f} and {best.training:.4f}"
    )


class Watch:
    """Says that a job overfits, and when it has to stop."""

    def __init__(self, job: str, log: MetricsLog, every: int, patience: int, best: Path | None):
        self.job, self.log, self.every, self.patience, self.best = job, log, every, patience, best
        """`best`: the file of the best state; None: there is none."""

    def enough(self, step: int) -> bool:
        """Whether tuning stops after this step; all processes ask together, and process 0 decides and tells."""
        if not step or step % self.every:
            return False
        return gather(distributed.is_lead() and self._told(step))[0]

    def _told(self, step: int) -> bool:
        found = points(row for row in self.log.rows(self.job) if row["step"] <= step)
        if not found or found[-1].step != step:
            return False
        best, after = since_least(found)
        kept = f"; the state of step {best.step} is {self.best}" if self.best and self.best.is_file() else ""
        if self.patience and after >= self.patience:
            fallen = f"the held-out loss has not fallen for {after} measurements"
            least = f"{best.held_out:.4f} at step {best.step}, {found[-1].held_out:.4f} now"
            _say(f"{self.job}: stops after step {step}: {fallen} ({least}){kept}")
            return True
        if line := warning(found):
            ways = "" if self.patience else f"; --tune.patience {WORSE} stops there, Ctrl-C stops now"
            _say(f"warning: {self.job}: {line}{kept}{ways}")
        return False


def _say(line: str) -> None:
    """Writes a line above the progress bar."""
    tqdm.write(line, file=sys.stderr)
