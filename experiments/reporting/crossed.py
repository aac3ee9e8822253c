"""95% intervals of means over items crossed with seeds, by Student's t: few seeds are what a bootstrap understates.

With values y[s, i] of seed s on item i, the mean's variance under random seeds and random items is
(MS_seeds + MS_items - MS_rest) / (S N), from the mean squares of a two-way table without repetitions; its degrees of
freedom are Satterthwaite's (1946). Where seeds differ much the interval is one of t with S - 1 degrees of freedom;
where they do not it is the normal one over items. With three seeds the percentile bootstrap over seeds covers 80 to 90%
instead of 95% (`tests/experiments/reporting/test_crossed.py` counts).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from experiments.reporting.statistics import Interval, ItemValues, require_finite


class Spread(NamedTuple):
    """The variance of a mean, and its degrees of freedom."""

    variance: float
    freedom: float


def crossed_interval(samples: Sequence[ItemValues]) -> Interval:
    """Computes the mean over samples (benchmarks) of their means, with its 95% interval.

    One seed tells nothing about seeds: the interval is then over items alone.

    Args:
      samples: one for each benchmark, drawn independently of each other; `paired_difference` gives that of a paired
        comparison.

    Returns:
      The mean and its interval.

    Raises:
      ValueError: a value is not finite, or a sample has a single item.
    """
    means, parts = [], []
    for sample in samples:
        require_finite(sample.values)
        require_finite(sample.parts, "number of parts")
        mean = float(sample.values.mean(0).sum() / sample.parts.sum())
        means.append(mean)
        parts.append(spread(_linear(sample, mean)))
    variance = sum(part.variance for part in parts) / len(parts) ** 2
    weights = sum((part.variance / len(parts) ** 2) ** 2 / part.freedom for part in parts)
    freedom = variance**2 / weights if weights else math.inf
    half = float(stdtrit(min(freedom, 1e9), 0.975)) * math.sqrt(variance)
    average = sum(means) / len(means)
    return Interval(average, average - half, average + half)


def _linear(sample: ItemValues, mean: float) -> Float[np.ndarray, "S N"]:
    """Values whose plain mean moves as the ratio of sums does (the delta method); with equal parts the values alone."""
    return (sample.values - mean * sample.parts) / sample.parts.mean()


def spread(values: Float[np.ndarray, "S N"]) -> Spread:
    """Computes the variance of the mean of a table of seeds and items, and its degrees of freedom.

    Raises:
      ValueError: there is a single item.
    """
    seeds, items = values.shape
    if items < 2:
        raise ValueError("an interval needs two items at least")
    total = values.mean()
    by_seed, by_item = values.mean(1), values.mean(0)
    of_items = seeds * float(np.square(by_item - total).sum()) / (items - 1)
    if seeds == 1:
        return Spread(of_items / items, items - 1)
    of_seeds = items * float(np.square(by_seed - total).sum()) / (seeds - 1)
    rest = values - by_seed[:, None] - by_item + total
    freedom = (seeds - 1) * (items - 1)
    of_rest = float(np.square(rest).sum()) / freedom
    squares = [(of_seeds, seeds - 1), (of_items, items - 1), (of_rest, freedom)]
    # Never below what either factor alone says: an estimate of one component may be negative by chance.
    count = seeds * items
    variance = max(of_seeds + of_items - of_rest, of_seeds, of_items) / count
    weights = sum((mean_square / count) ** 2 / df for mean_square, df in squares)
    return Spread(variance, variance**2 / weights if weights else items - 1)
