"""The table while it grows: drawn again at the same place on a terminal, a line a cell elsewhere."""

import sys
import time
from collections.abc import Sequence

from experiments.reporting.tables import text_table
from experiments.study.labels import LABELS
from experiments.study.records import CellRecord


class ProgressTable:
    """Shows mean accuracies so far. missing: how many of all cells no earlier run has computed."""

    def __init__(self, tasks: Sequence[str], total: int, missing: int):
        self.tasks, self.total, self.missing, self.done, self.computed = list(tasks), total, missing, 0, 0
        self.accuracies: dict[str, dict[str, list[float]]] = {}
        self.begin, self.height = time.perf_counter(), 0

    def show(self, name: str, record: CellRecord, computed: bool) -> None:
        """Counts a finished cell and draws."""
        self.done, self.computed, accuracy = self.done + 1, self.computed + computed, None
        if record["kind"] == "measured" or record["kind"] == "tuned":
            accuracy = sum(record["right"]) / len(record["right"])
            self.accuracies.setdefault(record["row"], {}).setdefault(record["task"], []).append(accuracy)
        if not computed and self.done < self.total:
            return
        seconds = time.perf_counter() - self.begin
        left = seconds / max(self.computed, 1) * (self.missing - self.computed)
        line = f"{self.done}/{self.total} cells, {seconds:.0f} s, about {left:.0f} s left; last: {name}"
        line += "" if accuracy is None else f", accuracy {100 * accuracy:.1f}%"
        if not sys.stdout.isatty():
            print(line, flush=True)
            return
        text = f"{self.table()}\n{line}"
        up = f"\x1b[{self.height}F\x1b[J" if self.height else ""
        print(up + text, flush=True)
        self.height = text.count("\n") + 1

    def table(self) -> str:
        """Returns the mean accuracies in percent, and of how many seeds."""
        lines = [["method", *self.tasks]]
        for name, by_task in self.accuracies.items():
            cells = [by_task.get(task, []) for task in self.tasks]
            texts = [f"{100 * sum(x) / len(x):.1f} ({len(x)})" if x else "-" for x in cells]
            lines.append([LABELS.get(name, name), *texts])
        return text_table(lines)
