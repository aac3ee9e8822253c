"""From the records of cells to numbers with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reporting.crossed import crossed_interval
from experiments.reporting.statistics import Interval, ItemValues, can_be_paired, paired_difference
from experiments.study.curves.plan import VANILLA, Place
from experiments.study.curves.records import CurveRecord

SHARE = 0.9
"""Of the best accuracy of a benchmark: what `time_to` is asked for."""
Points = dict[Place, list[CurveRecord]]
"""Point of a curve -> its records, in the order of seeds."""


class Reached(NamedTuple):
    """When a curve first has an accuracy, between its points linear in the logarithm of steps."""

    steps: float
    seconds: float | None
    """Without compilation; None where steps were not timed."""


def points(records: Sequence[tuple[Place, CurveRecord]]) -> Points:
    """Returns the records by point, in the order of seeds."""
    found: Points = {}
    for place, record in records:
        found.setdefault(place, []).append(record)
    return {place: sorted(cells, key=lambda one: one["seed"]) for place, cells in found.items()}


def values(cells: Sequence[Mapping[str, object]], measure: str) -> ItemValues:
    """Returns the values of held-out records: `loss` (nats of each, parts are tokens), or a metric's of each."""
    if measure == "loss":
        nll = np.asarray([cell["nll"] for cell in cells], np.float64)
        return ItemValues(nll, np.asarray(cells[0]["tokens"], np.float64))
    scores = [cell["scores"] for cell in cells]
    found = np.asarray([one[measure] for one in scores if isinstance(one, dict)], np.float64)
    return ItemValues(found, np.ones(found.shape[1]))


def interval(cells: Sequence[Mapping[str, object]], measure: str) -> Interval:
    """Computes the mean of a measure with its interval; that of an accuracy is cut at 0 and 1."""
    found = crossed_interval([values(cells, measure)])
    if measure == "loss":
        return found
    return Interval(found.mean, max(0.0, found.low), min(1.0, found.high))


def difference(cells: Sequence[Mapping[str, object]], others: Sequence[Mapping[str, object]], measure: str) -> Interval:
    """Computes the paired difference of two states' measures on the same records, seed by seed.

    Where one side has a single seed, as the untuned model has, it is compared with every seed of the other.

    Raises:
      ValueError: the two have different numbers of seeds.
    """
    return crossed_interval([paired_difference(values(cells, measure), values(others, measure))])


def with_equal_seeds(
    cells: Sequence[CurveRecord], others: Sequence[CurveRecord]
) -> tuple[list[CurveRecord], list[CurveRecord]]:
    """Returns the records of the seeds that both have; of an untuned model its only one."""
    if len(others) == 1 and others[0]["row"] == VANILLA:
        return list(cells), list(others)
    both = {one["seed"] for one in cells} & {one["seed"] for one in others}
    first, second = ([one for one in side if one["seed"] in both] for side in (cells, others))
    return first, second


def accuracies(found: Points, row: str, task: str, metric: str) -> list[tuple[int, float]]:
    """Returns (steps, mean accuracy) of a row's points, by steps; the untuned model is the point of no step."""
    curve = []
    for place, cells in found.items():
        if place.task == task and place.row in (row, VANILLA):
            curve.append((int(cells[0]["steps"]), float(values(cells, metric).values.mean())))
    return sorted(curve)


def time_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Returns the number of steps after which a curve first has a value; None if it never has.

    Between two points the curve is linear in log(1 + steps).

    Args:
      curve: (steps, value), by steps.
      target: the value.

    Example:
      >>> time_to([(0, 0.0), (3, 1.0)], 0.5), time_to([(0, 0.0), (3, 1.0)], 2.0), time_to([(0, 1.0)], 0.5)
      (1.0, None, 0.0)
    """
    before: tuple[int, float] | None = None
    for steps, value in curve:
        if value >= target:
            if before is None:
                return float(steps)
            share = (target - before[1]) / (value - before[1])
            low, high = math.log1p(before[0]), math.log1p(steps)
            return math.expm1(low + share * (high - low))
        before = (steps, value)
    return None


def reached(
    found: Points, rows: Sequence[str], task: str, metric: str, seconds: Mapping[str, float]
) -> tuple[float, dict[str, Reached | None]]:
    """Returns the target, SHARE of the best mean accuracy of all rows, and when each row reaches it.

    Args:
      found: all points.
      rows: the rows to compare.
      task: the benchmark.
      metric: of the benchmark.
      seconds: of a step of each row.
    """
    curves = {row: accuracies(found, row, task, metric) for row in rows}
    best = max((value for curve in curves.values() for _, value in curve), default=0.0)
    target, times = SHARE * best, {}
    for row, curve in curves.items():
        steps = time_to(curve, target)
        if len(curve) > 1:
            each = seconds.get(row)
            times[row] = None if steps is None else Reached(steps, None if each is None else steps * each)
    return target, times


def against(found: Points, base: str, measure: str) -> dict[Place, Interval]:
    """Returns the paired difference of each point from the row `base` at the same budget, or from the untuned model."""
    differences = {}
    for place, cells in found.items():
        other = Place(base, place.task, 0 if base == VANILLA else place.budget)
        if place.row in (base, VANILLA) or other not in found:
            continue
        mine, theirs = with_equal_seeds(cells, found[other])
        if mine and can_be_paired(values(mine, measure), values(theirs, measure)):
            differences[place] = difference(mine, theirs, measure)
    return differences


def elsewhere(found: Points, headlines: Mapping[str, str]) -> dict[Place, dict[str, Interval]]:
    """Returns, for points measured elsewhere, the change from the untuned model on each other benchmark (accuracy) and
    on plain text (`text`, nats a token)."""
    changes: dict[Place, dict[str, Interval]] = {}
    for place, cells in found.items():
        if place.row == VANILLA or any("elsewhere" not in cell for cell in cells):
            continue
        mine: dict[str, Interval] = {}
        for task in cells[0]["elsewhere"]:
            base = found.get(Place(VANILLA, task, 0))
            if base:
                mine[task] = difference([cell["elsewhere"][task] for cell in cells], base, headlines[task])
        base = found.get(Place(VANILLA, place.task, 0))
        if base and cells[0]["text"]["nll"]:
            mine["text"] = difference([cell["text"] for cell in cells], [base[0]["text"]], "loss")
        changes[place] = mine
    return changes
