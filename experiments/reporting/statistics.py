"""Means with standard errors and 95% intervals: of proportions, of records in groups, of items crossed with seeds."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Z95 = 1.959963984540054
FEW = 10
"""Records below which a table says that an interval is not worth much."""
"""The 97.5% quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """A mean and the limits of its 95% interval."""

    mean: float
    low: float
    high: float


class Mean(NamedTuple):
    """A mean over `count` records, with its standard error."""

    value: float
    error: float
    count: int


class ItemValues(NamedTuple):
    """Values of the same items under several seeds."""

    values: Float[np.ndarray, "S N"]
    """Sums over an item's parts (correct answers, nats), a seed a line; one line where a method has no randomness."""
    parts: Float[np.ndarray, "N"]
    """How many parts an item has (1, or its tokens)."""


def require_finite(values: Sequence[float] | np.ndarray, what: str = "value") -> None:
    """Checks that a statistic can be made of values.

    Raises:
      ValueError: names the first that is not finite.
    """
    x = np.asarray(values, np.float64)
    if len(places := np.argwhere(~np.isfinite(x))):
        place = tuple(places[0].tolist())
        number = ", ".join(str(n + 1) for n in place)
        raise ValueError(f"{what} {number} of {x.size} is {x[place]}, not a finite number")


def mean(values: Sequence[float]) -> Mean:
    """Computes the mean and s / sqrt(n), s with n - 1; the error of a single value is NaN.

    Raises:
      ValueError: a value is not finite.
    """
    require_finite(values)
    value = sum(values) / len(values)
    spread = sum((x - value) ** 2 for x in values)
    error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else math.nan
    return Mean(value, error, len(values))


def pooled(parts: Sequence[Mean]) -> Mean:
    """Computes the mean over all records of several parts, and its error by the parts' pooled variance.

    Raises:
      ValueError: a mean, or the error of several values, is not finite.
    """
    require_finite([part.value for part in parts], "mean")
    require_finite([part.error for part in parts if part.count > 1], "error")
    count = sum(part.count for part in parts)
    value = sum(part.value * part.count for part in parts) / count
    freedom = count - len(parts)
    squares = sum((part.count - 1) * part.error**2 * part.count for part in parts if part.count > 1)
    return Mean(value, math.sqrt(squares / freedom / count) if freedom else math.nan, count)


def mcnemar(better: int, worse: int) -> float:
    """Computes the exact two-sided p of as uneven a split of the `better + worse` changed answers, each way as likely
    (McNemar 1947)."""
    total, few = better + worse, min(better, worse)
    term = tail = 1
    for i in range(few):
        term = term * (total - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def few_records(counts: Mapping[str, int], what: str = "records") -> list[str]:
    """Returns a line that names where fewer than `FEW` records are behind an interval, none if there are more.

    Example:
      >>> few_records({"arc": 3, "mmlu": 200})
      ['too few records for an interval to say much: arc 3']
    """
    named = ", ".join(f"{name} {count}".strip() for name, count in counts.items() if count < FEW)
    return [f"too few {what} for an interval to say much: {named}"] if named else []


def wilson(successes: int, trials: int) -> Interval:
    """Computes the 95% score interval of a proportion (Wilson 1927), sound at 0 and 1 and for few trials.

    Raises:
      ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: there are between 0 and all")
    p, z2 = successes / trials, Z95 * Z95
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def bootstrap(
    groups: Sequence[Sequence[float]],
    seed: int,
    weights: Sequence[Sequence[float]] | None = None,
    resamples: int = 4000,
) -> Interval:
    """Computes the mean over groups of each group's (weighted) mean, with a 95% percentile interval.

    Records are drawn again within their group. Per-record differences give a paired comparison; one group is the plain
    bootstrap (Efron 1979).

    Args:
      groups: the values of each group's records.
      seed: of the draws.
      weights: of the records of each group; None: all alike.
      resamples: number of draws.

    Returns:
      The mean and its interval.

    Raises:
      ValueError: a value or weight is not finite.
    """
    for group in [*groups, *(weights or ())]:
        require_finite(group)
    rng = np.random.default_rng(seed)
    values = [np.asarray(group, np.float64) for group in groups]
    scales = [np.ones_like(x) for x in values] if weights is None else [np.asarray(w, np.float64) for w in weights]
    draws = []
    for x, w in zip(values, scales, strict=True):
        blocks = (rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size) for size in _blocks(resamples))
        draws.append(np.concatenate([(times @ (x * w)) / (times @ w) for times in blocks]))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    average = np.mean([np.average(x, weights=w) for x, w in zip(values, scales, strict=True)])
    return Interval(float(average), float(low), float(high))


def _blocks(total: int, size: int = 250) -> list[int]:
    """Parts of `total` of at most `size`, which bounds the memory of a bootstrap."""
    return [min(size, total - start) for start in range(0, total, size)]


def mean_of_parts(sample: ItemValues) -> float:
    """Computes the mean over all parts of all items and seeds.

    Raises:
      ValueError: a value is not finite.
    """
    require_finite(sample.values)
    require_finite(sample.parts, "number of parts")
    return float(sample.values.mean(0).sum() / sample.parts.sum())


def crossed_bootstrap(samples: Sequence[ItemValues], seed: int, resamples: int = 4000) -> Interval:
    """Computes the mean over samples (benchmarks) of their means, with a 95% percentile interval.

    In each sample, items and seeds are drawn again independently (the pigeonhole bootstrap, Owen 2007; it errs on the
    wide side). `paired_difference` gives the sample of a paired comparison.

    Args:
      samples: one for each benchmark.
      seed: of the draws.
      resamples: number of draws.

    Returns:
      The mean and its interval.

    Raises:
      ValueError: a value is not finite.
    """
    means = [mean_of_parts(sample) for sample in samples]
    draws = np.mean([_draws(sample, (seed, place), resamples) for place, sample in enumerate(samples)], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(np.mean(means)), float(low), float(high))


def _draws(sample: ItemValues, seed: tuple[int, int], resamples: int) -> Float[np.ndarray, "R"]:
    seeds, items = sample.values.shape
    of_seeds, of_items = (_times_drawn(count, (*seed, i), resamples) for i, count in enumerate((seeds, items)))
    return ((of_seeds @ sample.values) / seeds * of_items).sum(1) / (of_items @ sample.parts)


@lru_cache(maxsize=32)
def _times_drawn(count: int, seed: tuple[int, ...], resamples: int) -> Float[np.ndarray, "R N"]:
    """How often each of `count` is in a resample, the same ones for every method."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)


def can_be_paired(a: ItemValues, b: ItemValues) -> bool:
    """Returns whether two samples have the same number of seeds, or one of them has a single seed."""
    return len({len(a.values), len(b.values), 1}) <= 2


def paired_difference(a: ItemValues, b: ItemValues) -> ItemValues:
    """Returns a - b, item by item; a sample with one seed is compared with every seed of the other.

    Only the first items that both have are compared.

    Raises:
      ValueError: the samples have different numbers of seeds.
    """
    count = min(a.values.shape[1], b.values.shape[1])
    if not can_be_paired(a, b):
        raise ValueError(f"{len(a.values)} and {len(b.values)} seeds cannot be compared pair by pair")
    return ItemValues(a.values[:, :count] - b.values[:, :count], a.parts[:count])
