"""Numbers of a run: rows of metrics.jsonl, progress bars, means with 95% intervals."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A mean and the limits of its 95% interval."""

    mean: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """95% score interval of a proportion (Wilson 1927), sound at 0 and 1 and for few trials."""
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
    """Mean over groups of each group's (weighted) mean, with a 95% percentile interval: records are drawn again within
    their group.

    Give per-record differences for a paired comparison. One group is the plain bootstrap (Efron 1979).
    """
    rng = np.random.default_rng(seed)
    values = [np.asarray(group, np.float64) for group in groups]
    scales = [np.ones_like(x) for x in values] if weights is None else [np.asarray(w, np.float64) for w in weights]
    draws = []
    for x, w in zip(values, scales, strict=True):
        blocks = (rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size) for size in _blocks(resamples))
        draws.append(np.concatenate([(times @ (x * w)) / (times @ w) for times in blocks]))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    mean = np.mean([np.average(x, weights=w) for x, w in zip(values, scales, strict=True)])
    return Interval(float(mean), float(low), float(high))


def _blocks(total: int, size: int = 250) -> list[int]:
    """Parts of `total` of at most `size`, which bounds the memory of a bootstrap."""
    return [min(size, total - start) for start in range(0, total, size)]


class MetricsLog:
    """metrics.jsonl: one row a logged step, the same for the same seed but for what stands under "timing"."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, job: str, step: int) -> None:
        """Forget rows of `job` after `step`, which a resumed run writes again, and a row cut off by a crash."""
        rows = [row for row in self.rows() if row["job"] != job or row["step"] <= step]
        beside = self.path.with_name(f".{self.path.name}")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(beside, self.path)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; it needs "job" and "step"."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, job: str | None = None) -> list[dict[str, Any]]:
        """All rows, or those of one job, in order."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        return [row for row in rows if job is None or row["job"] == job]


def progress_bar(total: int, name: str, unit: str, done: int = 0, *, shown: bool = True) -> tqdm:
    """A progress bar on stderr with ETA; one line every 10 s where stderr is a file; nothing unless `shown`."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    look: dict[str, Any] = {"mininterval": interval, "dynamic_ncols": True, "leave": True, "disable": not shown}
    return tqdm(total=total, initial=done, desc=name, unit=unit, **look)


class Throughput:
    """Tokens per second since the first call, which (compilation) does not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.start, self.tokens = clock, None, 0

    def add(self, tokens: float) -> float:
        """Count the tokens of one step and give the mean rate, 0.0 at the first call."""
        now = self.clock()
        if self.start is None:
            self.start = now
            return 0.0
        self.tokens += tokens
        return self.tokens / max(now - self.start, 1e-9)
