"""One row per kernel and target, as text and as JSON."""

import json
from collections.abc import Sequence
from typing import NamedTuple

COMPILED = "compiled"


class Row(NamedTuple):
    """What the compiler said of one kernel; None where it says nothing or the target has no such thing.

    status: `COMPILED`, or the compiler's message in one line.
    memory: bytes of on-chip memory, VMEM on a TPU and shared memory on a GPU.
    registers, spills: per thread, and bytes spilled, on a GPU; barriers, shared_loads, shared_stores, async_copies:
    instructions of its PTX, see `nvidia.Kernel`; warps of a program; blocks: programs that run at once on a
    multiprocessor. A rule of several kernels has a row of its own, and one for each of them, "rule: kernel".
    resets: whether the inputs have resets.
    bundles: instruction bundles in the static schedule of one step of a TPU kernel's grid.
    bound_ms: bundles of all steps over the clock, a lower bound of the time; floor_ms: bytes moved over the
    memory's bandwidth.
    """

    kernel: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    status: str
    memory: int | None = None
    registers: int | None = None
    spills: int | None = None
    bundles: int | None = None
    bound_ms: float | None = None
    floor_ms: float | None = None
    resets: bool | None = None
    warps: int | None = None
    blocks: int | None = None
    barriers: int | None = None
    shared_loads: int | None = None
    shared_stores: int | None = None
    async_copies: int | None = None


HEADINGS = {
    "kernel": "kernel", "shape": "B,T,H,N", "dtype": "dtype", "resets": "resets", "memory": "memory KiB",
    "registers": "registers", "spills": "spills B", "warps": "warps", "blocks": "blocks",
    "barriers": "barriers", "shared_loads": "shared loads", "shared_stores": "shared stores",
    "async_copies": "async copies", "bundles": "bundles",
    "bound_ms": "bound ms", "floor_ms": "floor ms", "status": "status",
}  # fmt: skip


def text(rows: Sequence[Row]) -> str:
    """Returns the rows as an aligned table, without columns where no row has anything, or of one shape for all."""
    columns = [name for name in HEADINGS if any(getattr(row, name) is not None for row in rows)]
    if len({row.shape for row in rows}) == 1:
        columns.remove("shape")
    lines = [[HEADINGS[name] for name in columns]]
    lines += [[_cell(name, getattr(row, name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if name == "memory" and isinstance(value, int):
        return f"{value / 1024:.0f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_json(rows: Sequence[Row]) -> str:
    """Returns the rows as JSON text, one object per row."""
    return json.dumps([row._asdict() for row in rows], indent=1) + "\n"


def from_json(text: str) -> list[Row]:
    """Returns the rows that `to_json` wrote."""
    return [Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(text)]
