"""The table while it grows: drawn again in place on a terminal, a line a cell elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.reporting.tables import text_table
from experiments.study.labels import LABELS


class Live:
    """Shows mean accuracies so far. missing: how many of all cells no earlier run has computed."""

    def __init__(self, tasks: Sequence[str], total: int, missing: int):
        self.tasks, self.total, self.missing, self.done, self.computed = list(tasks), total, missing, 0, 0
        self.cells: dict[str, dict[str, list[float]]] = {}
        self.begin, self.lines = time.perf_counter(), 0

    def show(self, name: str, row: dict[str, Any], computed: bool) -> None:
        """Count a finished cell and draw."""
        self.done, self.computed = self.done + 1, self.computed + computed
        if "right" in row:
            found = self.cells.setdefault(row["row"], {})
            found.setdefault(row["task"], []).append(sum(row["right"]) / len(row["right"]))
        if not computed and self.done < self.total:
            return
        seconds = time.perf_counter() - self.begin
        left = seconds / max(self.computed, 1) * (self.missing - self.computed)
        line = f"{self.done}/{self.total} cells, {seconds:.0f} s, about {left:.0f} s left; last: {name}"
        if "right" in row:
            line += f", accuracy {100 * sum(row['right']) / len(row['right']):.1f}%"
        if not sys.stdout.isatty():
            print(line, flush=True)
            return
        text = f"{self.table()}\n{line}"
        up = f"\x1b[{self.lines}F\x1b[J" if self.lines else ""
        print(up + text, flush=True)
        self.lines = text.count("\n") + 1

    def table(self) -> str:
        """Mean accuracy in percent, and of how many seeds."""
        rows = [["method", *self.tasks]]
        for name, found in self.cells.items():
            cells = [found.get(task, []) for task in self.tasks]
            texts = [f"{100 * sum(x) / len(x):.1f} ({len(x)})" if x else "-" for x in cells]
            rows.append([LABELS.get(name, name), *texts])
        return text_table(rows)
