"""What searches for learning rates have in common: the ladder, losses that may be infinite, losses by rate."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from state_tuning.core.non_finite import NonFiniteError

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
STARTS = (1e-2, 1e-1, 1.0)


def climb(loss: Callable[[float], float], ladder: Sequence[float] = LADDER, starts: Sequence[float] = STARTS) -> float:
    """Returns the rate of `ladder` at the local minimum of `loss` below the best of `starts`; an end may be one."""
    known: dict[int, float] = {}

    def value(index: int) -> float:
        if not 0 <= index < len(ladder):
            return math.inf
        if index not in known:
            found = loss(ladder[index])
            known[index] = found if math.isfinite(found) else math.inf
        return known[index]

    best = min(map(ladder.index, starts), key=value)
    while True:
        other = min((best, best + 1, best - 1), key=value)
        if other == best and not math.isfinite(value(best)):
            raise ValueError(
                f"tuning diverges at every rate tried: {', '.join(f'{ladder[i]:g}' for i in sorted(known))}"
            )
        if other == best:
            return ladder[best]
        best = other


def following(tried: Sequence[float], best: float, ladder: Sequence[float] = LADDER) -> float | None:
    """Returns the next rate of the ladder where the best of the tried rates is the largest or the least, else None."""
    above = [rate for rate in ladder if rate > max(tried) * (1 + 1e-9)]
    below = [rate for rate in ladder if rate < min(tried) * (1 - 1e-9)]
    if best == max(tried):
        return above[0] if above else None
    return below[-1] if below and best == min(tried) else None


def loss_or_infinity(tune_and_measure: Callable[[], float]) -> float:
    """Returns the loss after tuning, infinite where tuning diverges."""
    try:
        loss = tune_and_measure()
    except NonFiniteError:
        return math.inf
    return loss if math.isfinite(loss) else math.inf


class Spread(NamedTuple):
    """Of the losses over seeds."""

    mean: float
    least: float
    largest: float


ByRate = dict[float, Spread]


def losses_by_rate(tries: Iterable[tuple[str, float, float]]) -> dict[str, ByRate]:
    """Returns task -> rate -> spread of the losses of all (task, rate, loss)."""
    found: dict[str, dict[float, list[float]]] = {}
    for task, rate, loss in tries:
        found.setdefault(task, {}).setdefault(rate, []).append(loss)
    return {
        task: {rate: Spread(sum(x) / len(x), min(x), max(x)) for rate, x in by_rate.items()}
        for task, by_rate in found.items()
    }


def finite_rates(by_rate: Mapping[float, Spread]) -> ByRate:
    """Returns the rates at which no seed diverges: what a picture can show."""
    return {rate: three for rate, three in by_rate.items() if math.isfinite(three[-1])}
