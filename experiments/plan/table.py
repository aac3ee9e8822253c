"""The plans in experiments/plan/results as the Markdown tables of docs/pods.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from experiments.reporting.tables import Line, markdown_table

RESULTS = Path(__file__).parent / "results"
HEAD = (
    "step", "model", "slice", "mesh (data x fsdp x tensor x sequence)", "tokens", "a chip needs", "of", "fits",
    "largest gather",
)  # fmt: skip
SCALING = (
    "slice", "chips", "tokens a step", "model FLOPs a chip", "compiler's FLOPs", "gathered a chip", "reduced a chip",
)  # fmt: skip


class Sent(TypedDict):
    """Operations of one kind that move data between chips."""

    kind: str
    count: int
    bytes: int


class Largest(TypedDict):
    """The largest result of one operation of a kind."""

    kind: str
    shape: str
    bytes: int


class Record(TypedDict):
    """A plan, as `report.as_json` writes it."""

    name: str
    config: str
    size: str | None
    settings: list[str]
    topology: str
    chips: int
    mesh: dict[str, int]
    tokens: int
    fits: bool
    chip_memory: int
    memory: dict[str, int]
    collectives: list[Sent]
    largest: list[Largest]
    cost: dict[str, float]
    kernels: int
    read: bool
    model_flops_per_chip: float
    jax: str


def records() -> list[Record]:
    """Returns all plans, by kind of step and by size."""
    found: list[Record] = [
        json.loads(path.read_text(encoding="utf-8")) | {"name": path.stem} for path in sorted(RESULTS.glob("*.json"))
    ]
    return sorted(found, key=lambda one: (one["config"].startswith("pretrain"), one["size"] or "", one["chips"]))


def line(record: Record) -> Line:
    """Returns the cells of one plan.

    "in sums": parts of weights are gathered by all-reduce, each chip adding its own to zeros.
    """
    kind = "state tuning"
    if record["config"].startswith("pretrain"):
        kind = "pre-training, Adam" if "adam" in record["settings"] else "pre-training, Muon"
    mesh = " x ".join(str(record["mesh"].get(axis, 1)) for axis in ("data", "fsdp", "tensor", "sequence"))
    gather = next((one["bytes"] for one in record["largest"] if one["kind"] == "all-gather"), 0)
    none = "in sums" if record["mesh"]["fsdp"] * record["mesh"]["tensor"] > 1 else "none"
    size = f"{gather / 2**20:.0f} MiB" if gather >= 2**20 else f"{gather / 2**10:.0f} KiB"
    largest = "not known" if not record["read"] else size if gather else none
    memory = (_gib(record["memory"]["needed"]), _gib(record["chip_memory"]), "yes" if record["fits"] else "no")
    return [kind, record["size"], record["topology"], mesh, record["tokens"], *memory, largest]


def scaling(found: Sequence[Record]) -> list[Line]:
    """Returns the cells of weak scaling by static cost: plans of one step and size on slices of different size."""
    lines: list[Line] = []
    for record in found:
        sent = {one["kind"]: one["bytes"] for one in record["collectives"]}
        lines.append([
            record["topology"], record["chips"], record["tokens"], f"{record['model_flops_per_chip']:.3g}",
            f"{record['cost'].get('flops', 0):.4g}", _gib(sent.get("all-gather", 0)), _gib(sent.get("all-reduce", 0)),
        ])  # fmt: skip
    return lines


def text() -> str:
    """Returns both tables: all plans, and the weak scaling of the 2.9B model."""
    found = records()
    tuning = [one for one in found if one["size"] == "2.9B" and one["config"] == "quickstart"]
    series = [one for one in tuning if "sequence" not in one["mesh"]]
    return f"{markdown_table([HEAD, *map(line, found)])}\n\n{markdown_table([SCALING, *scaling(series)])}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
