"""Numbers of a run: records of metrics.jsonl, progress bars, throughput."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from tqdm import tqdm

from experiments.reporting import jsonl_store
from experiments.reporting.json_file import with_nan


class Timing(TypedDict):
    """What differs from run to run."""

    tokens_per_s: int
    mfu: NotRequired[float]


class Row(TypedDict):
    """One record of metrics.jsonl; beside these keys it holds every other metric of the step by its name."""

    job: str
    step: int
    loss: float
    validation_loss: NotRequired[float]
    timing: Timing


class MetricsLog:
    """metrics.jsonl: one row a logged step, the same for the same seed but for what stands under "timing"."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, job: str, step: int) -> None:
        """Forgets rows of `job` after `step`, which a resumed run writes again, and a row cut off by a crash."""
        rows = self._read("left out")
        jsonl_store.rewrite(self.path, [row for row in rows if row["job"] != job or row["step"] <= step])

    def append(self, row: Row) -> None:
        """Writes one row."""
        jsonl_store.append(self.path, row)

    def rows(self, job: str | None = None) -> list[Row]:
        """Returns all rows, or those of one job, in order."""
        return [row for row in self._read("left out") if job is None or row["job"] == job]

    def _read(self, lost: str) -> list[Row]:
        rows = jsonl_store.read(self.path, {"job": str, "step": int}, lost)
        return cast(list[Row], [with_nan(row) for row in rows])


def progress_bar(total: int, name: str, unit: str, done: int = 0, *, shown: bool = True) -> tqdm:
    """Returns a progress bar on stderr with ETA; one line every 10 s where stderr is a file; nothing unless `shown`."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        mininterval=interval,
        dynamic_ncols=True,
        leave=True,
        disable=not shown,
    )


class Throughput:
    """Tokens per second since the first call, which (compilation) does not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.start, self.tokens = clock, None, 0

    def add(self, tokens: float) -> float:
        """Counts the tokens of one step and returns the mean rate, 0.0 at the first call."""
        now = self.clock()
        if self.start is None:
            self.start = now
            return 0.0
        self.tokens += tokens
        return self.tokens / max(now - self.start, 1e-9)
