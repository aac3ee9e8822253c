"""`python -m experiments.plan.table`: the plans in experiments/plan/results as the Markdown tables of docs/pods.md."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEAD = (
    "| step | model | slice | mesh (data x fsdp x tensor) | tokens | a chip needs | of | fits | largest gather |",
    "|---" * 9 + "|",
)
SCALING = (
    "| slice | chips | tokens a step | model FLOPs a chip | compiler's FLOPs | gathered a chip | reduced a chip |",
    "|---" * 7 + "|",
)


def rows() -> list[dict[str, Any]]:
    """All plans, by kind of step and by size."""
    found = [json.loads(path.read_text()) | {"name": path.stem} for path in sorted(RESULTS.glob("*.json"))]
    return sorted(found, key=lambda row: (row["config"].startswith("pretrain"), row["size"] or "", row["chips"]))


def line(row: dict[str, Any]) -> str:
    """One plan. "in sums": parts of weights are gathered by all-reduce, each chip adding its own to zeros."""
    kind = "state tuning"
    if row["config"].startswith("pretrain"):
        kind = "pre-training, Adam" if "adam" in row["settings"] else "pre-training, Muon"
    mesh = " x ".join(str(size) for size in row["mesh"].values())
    gather = next((one["bytes"] for one in row["largest"] if one["kind"] == "all-gather"), 0)
    none = "in sums" if row["mesh"]["fsdp"] * row["mesh"]["tensor"] > 1 else "none"
    largest = "not known" if not row["read"] else f"{gather / 2**20:.0f} MiB" if gather else none
    memory = (_gib(row["memory"]["needed"]), _gib(row["chip_memory"]), "yes" if row["fits"] else "no")
    cells = [kind, row["size"], row["topology"], mesh, row["tokens"], *memory, largest]
    return "| " + " | ".join(map(str, cells)) + " |"


def scaling(found: Sequence[dict[str, Any]]) -> list[str]:
    """Weak scaling by static cost: plans of one step and size on slices of different size, rows in proportion."""
    out = []
    for row in found:
        moved = {one["kind"]: one["bytes"] for one in row["collectives"]}
        cells = [
            row["topology"], row["chips"], row["tokens"], f"{row['model_flops_per_chip']:.3g}",
            f"{row['cost'].get('flops', 0):.4g}", _gib(moved.get("all-gather", 0)), _gib(moved.get("all-reduce", 0)),
        ]  # fmt: skip
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; returns the exit status."""
    argparse.ArgumentParser(prog="python -m experiments.plan.table", description=__doc__).parse_args(argv)
    found = rows()
    print("\n".join([*HEAD, *map(line, found)]))
    series = [row for row in found if row["size"] == "2.9B" and row["config"] == "quickstart"]
    print("\n" + "\n".join([*SCALING, *scaling(series)]))
    return 0


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
