"""Cells of the table and their rows: one JSON line each, written when it is done, found again by what it depends on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.schema import digest


class Cell(NamedTuple):
    """One thing to compute once. `settings` is whatever its result depends on, as plain JSON."""

    kind: str
    row: str
    task: str
    seed: int
    settings: Any

    @property
    def key(self) -> str:
        """Identifies the cell and its settings."""
        return digest(list(self))[:20]

    @property
    def name(self) -> str:
        """For people and file names."""
        return f"{self.row}-{self.task}-{self.seed}"


class Store:
    """cells.jsonl. A line that a crash cut off is dropped."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in rows}

    def add(self, cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
        """Keep what was found for a cell."""
        row = {"key": cell.key, "kind": cell.kind, "row": cell.row, "task": cell.task, "seed": cell.seed, **found}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[cell.key] = row
        return row

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell."""
        return self.rows.get(cell.key)
