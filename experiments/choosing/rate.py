"""The learning rate by a few short runs, one after another with one compiled step, along the ladder of `rwkv7 sweep`.

One after another, not side by side as rows of one batch: docs/choosing.md has the measurement.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments.study.learning_rates import LADDER, climb

SHORTEST, LONGEST, PART = 25, 100, 4
"""Steps of a short run: a part of the run's own, within bounds."""
RECORDS = 64
"""Held-out records that rates are compared on."""


class Choice(NamedTuple):
    """A rate with the losses of all that were tried."""

    rate: float
    losses: Mapping[float, float]
    """Held-out loss by rate, nats per token; infinite where tuning diverges."""


def short_steps(steps: int) -> int:
    """Returns how many steps a short run takes.

    Example:
      >>> short_steps(400), short_steps(40), short_steps(10), short_steps(5000)
      (100, 25, 10, 100)
    """
    return min(steps, max(SHORTEST, min(LONGEST, steps // PART)))


def choose(loss: Callable[[float], float], default: float) -> Choice:
    """Returns the rate at the bottom of the valley below the better of the method's own rate and a tenth of it.

    Args:
      loss: rate -> held-out loss after a short run.
      default: the rate of the method where none is given.

    Raises:
      ValueError: tuning diverges at every rate.
    """
    found: dict[float, float] = {}

    def measured(rate: float) -> float:
        value = loss(rate)
        found[rate] = value if math.isfinite(value) else math.inf
        return found[rate]

    starts = tuple(dict.fromkeys((nearest(default), nearest(default / 10))))
    return Choice(climb(measured, starts=starts), found)


def nearest(rate: float) -> float:
    """Returns the rate of the ladder that is nearest in ratio.

    Example:
      >>> nearest(0.9), nearest(1e-9)
      (1.0, 0.0001)
    """
    return min(LADDER, key=lambda one: abs(math.log(one / rate)))


def told(choice: Choice, steps: int, whole: int, records: int, source: str) -> str:
    """Returns the line that says what was chosen and why.

    Args:
      choice: the rates.
      steps: of a short run.
      whole: steps of the run.
      records: held-out records.
      source: where they are from.
    """
    losses = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in sorted(choice.losses.items()))
    place = sorted(choice.losses).index(choice.rate)
    ends = {0: LADDER[0], len(choice.losses) - 1: LADDER[-1]}
    end = "; the end of the ladder" if ends.get(place) == choice.rate else ""
    runs = f"{len(choice.losses)} runs of {steps} of {whole} steps, loss on {records} records of {source}"
    return f"tune.learning_rate auto: {choice.rate:g}, the least of {losses} ({runs}{end})"
