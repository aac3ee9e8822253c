"""Cells and their records: one JSON line each, written when the cell is done, found again by what it depends on."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

from experiments.config.schema import digest
from experiments.reporting import jsonl_store
from experiments.reporting.json_file import with_nan

R = TypeVar("R", bound=Mapping[str, object])
NUMBER = (int, float, type(None))
"""None is a number that is not finite."""
SCORES: jsonl_store.Fields = {"nll": list, "tokens": list, "right": list}
TRY: jsonl_store.Fields = {"task": str, "seed": int, "rate": NUMBER}
FIELDS: Mapping[object, jsonl_store.Fields] = {
    "measured": SCORES,
    "tuned": {**SCORES, **TRY, "steps": int, "skipped": int, "seconds": NUMBER, "conditions": list, "train": list},
    "timing": {"seconds": dict},
    "observer": {"plain": dict, "corrected": dict},
    "scaled": {"problems": list},
    "queries": {"norms": dict},
    "spectra": {"spectra": dict},
    "rate": {**TRY, "row": str, "loss": NUMBER},
    "phrasing": {**TRY, "strict": list, "flexible": list},
    "curve": {
        **TRY,
        "row": str,
        "budget": int,
        "steps": int,
        "skipped": int,
        "seconds": NUMBER,
        "examples": int,
        "nll": list,
        "tokens": list,
        "scores": dict,
    },
    "solutions": {"pairs": list, "sampled": int, "accepted": int, "cut": int},
    "sweep": {**TRY, "loss_vanilla": NUMBER, "loss_tuned": NUMBER},
}
"""Kind of a record -> what it has besides its key."""
NUMBERS = ("nll", "tokens", "right", "train", "strict", "flexible")


class Cell(NamedTuple):
    """One thing to compute once."""

    kind: str
    method: str
    task: str
    seed: int
    settings: object
    """Whatever its result depends on, as plain JSON."""

    @property
    def key(self) -> str:
        """Identifies the cell and its settings."""
        return digest(list(self))[:20]

    @property
    def name(self) -> str:
        """The cell in progress lines and file names."""
        return f"{self.method}-{self.task}-{self.seed}"


def fields_of(record: jsonl_store.Record) -> jsonl_store.Fields:
    """Returns what a record has to have.

    Raises:
      ValueError: something in it that should be a number is none.
    """
    fields = FIELDS.get(str(record.get("kind")), {})
    for name in fields.keys() & set(NUMBERS):
        if isinstance(values := record.get(name), list) and not all(isinstance(one, NUMBER) for one in values):
            raise ValueError(f"{name!r} holds something else than numbers")
    return {"key": str, **fields}


def read(path: Path) -> list[jsonl_store.Record]:
    """Returns the sound records of a file without changing it, a warning telling of others."""
    return [_again(record) for record in jsonl_store.read(path, fields_of)]


def _again(record: jsonl_store.Record) -> jsonl_store.Record:
    """A record with the numbers that are not finite, which JSON does not have: a loss is infinite where tuning
    diverges, all else is NaN."""
    losses = {name: math.inf for name, value in record.items() if value is None and name.startswith("loss")}
    return {name: with_nan(value) for name, value in record.items()} | losses


class CellStore(Generic[R]):
    """A jsonl file of records by cell; a damaged record, or what a crash left of the last, is computed again."""

    def __init__(self, path: Path):
        self.path = path
        found = [_again(record) for record in jsonl_store.recover(path, fields_of)]
        self.records = {str(record["key"]): cast(R, record) for record in found}

    def add(self, cell: Cell, found: Mapping[str, object]) -> R:
        """Keeps what was found for a cell and returns its record."""
        names = {"key": cell.key, "kind": cell.kind, "row": cell.method, "task": cell.task, "seed": cell.seed}
        record = {**names, **found}
        jsonl_store.append(self.path, record, durable=True)
        self.records[cell.key] = cast(R, record)
        return self.records[cell.key]

    def get(self, cell: Cell) -> R | None:
        """Returns the record of a cell, None if it was not computed."""
        return self.records.get(cell.key)

    def get_or_add(self, cell: Cell, compute: Callable[[], Mapping[str, object]]) -> R:
        """Returns the record of a cell, computed and kept if it is new."""
        known = self.get(cell)
        return self.add(cell, compute()) if known is None else known
