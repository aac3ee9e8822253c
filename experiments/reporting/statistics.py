"""Intervals over items and seeds: both are drawn anew, crossed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.training.metrics_log import Interval


class Sample(NamedTuple):
    """Values of the same items under several seeds."""

    values: Float[np.ndarray, "S N"]
    """Sums over an item's parts (correct answers, nats); one row where a method has no randomness."""
    parts: Float[np.ndarray, "N"]
    """How many parts an item has (1, or its tokens)."""


def mean(sample: Sample) -> float:
    """The mean over all parts of all items and seeds."""
    return float(sample.values.mean(0).sum() / sample.parts.sum())


def crossed(samples: Sequence[Sample], seed: int, resamples: int = 4000) -> Interval:
    """The mean over samples (benchmarks) of their means, with a 95% percentile interval: in each sample, items and
    seeds are drawn again independently (the pigeonhole bootstrap, Owen 2007; it errs on the wide side).

    For a paired comparison give differences item by item and seed by seed.
    """
    draws = np.mean([_draws(sample, (seed, place), resamples) for place, sample in enumerate(samples)], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(np.mean([mean(sample) for sample in samples])), float(low), float(high))


def _draws(sample: Sample, seed: tuple[int, int], resamples: int) -> Float[np.ndarray, "R"]:
    seeds, items = sample.values.shape
    of_seeds, of_items = (_times_drawn(count, (*seed, i), resamples) for i, count in enumerate((seeds, items)))
    return ((of_seeds @ sample.values) / seeds * of_items).sum(1) / (of_items @ sample.parts)


@lru_cache(maxsize=32)
def _times_drawn(count: int, seed: tuple[int, ...], resamples: int) -> Float[np.ndarray, "R N"]:
    """How often each of `count` is in a resample, the same ones for every method."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)


def difference(a: Sample, b: Sample) -> Sample:
    """a - b, item by item; a sample with one seed stands beside every seed of the other.

    Only the first items that both have are compared. Raises: ValueError for other numbers of seeds.
    """
    count = min(a.values.shape[1], b.values.shape[1])
    if len({len(a.values), len(b.values), 1}) > 2:
        raise ValueError(f"{len(a.values)} and {len(b.values)} seeds cannot be compared pair by pair")
    return Sample(a.values[:, :count] - b.values[:, :count], a.parts[:count])
