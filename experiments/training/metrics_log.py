"""Numbers of a run: records of metrics.jsonl, progress bars, throughput."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.reporting import jsonl_store


class MetricsLog:
    """metrics.jsonl: one row a logged step, the same for the same seed but for what stands under "timing"."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, job: str, step: int) -> None:
        """Forget rows of `job` after `step`, which a resumed run writes again, and a row cut off by a crash."""
        rows = [row for row in self.rows() if row["job"] != job or row["step"] <= step]
        jsonl_store.rewrite(self.path, rows)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; it needs "job" and "step"."""
        jsonl_store.append(self.path, row)

    def rows(self, job: str | None = None) -> list[dict[str, Any]]:
        """All rows, or those of one job, in order."""
        return [row for row in jsonl_store.read(self.path) if job is None or row["job"] == job]


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
