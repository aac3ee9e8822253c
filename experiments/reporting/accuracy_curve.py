"""Accuracy against budget: rows of answered problems -> curve, table, picture."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.statistics import bootstrap, wilson

NAMES = {
    "greedy": "greedy",
    "self_consistency": "self-consistency",
    "best_of_n": "best-of-N, same scorer",
    "adapted": "adapted",
    "larger": "larger model alone",
}
"""Methods in the order of the table. N counts chains: K s + 1 after s steps of adaptation, the answer included."""

FILES = ("curve.json", "curve.md", "curve.png")
"""What `write` leaves."""

Row = dict[str, Any]


def curve(rows: Sequence[Row]) -> list[Row]:
    """One point for each method and N: accuracy with its 95% interval (Wilson), mean tokens, median seconds a problem.

    rows: {"lines": [{"method", "n", "correct", "student_tokens", "teacher_tokens", "seconds"}, ...]} of each problem.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        for line in row["lines"]:
            groups.setdefault((line["method"], line["n"]), []).append(line)
    order = list(NAMES)
    points = []
    for (method, n), lines in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        accuracy = wilson(int(sum(line["correct"] for line in lines)), len(lines))
        tokens = {name: statistics.fmean(line[name] for line in lines) for name in ("student_tokens", "teacher_tokens")}
        seconds = statistics.median(line["seconds"] for line in lines)
        points.append({"method": method, "n": n, **accuracy._asdict(), **tokens, "seconds": seconds})
    return points


def differences(rows: Sequence[Row], seed: int) -> list[Row]:
    """Adapted minus each control at the same N, problem by problem, with a paired 95% bootstrap interval."""
    by_line = [{(line["method"], line["n"]): line["correct"] for line in row["lines"]} for row in rows]
    sizes = sorted({n for method, n in by_line[0] if method == "adapted"})
    against = [(n, other) for n in sizes for other in ("self_consistency", "best_of_n") if (other, n) in by_line[0]]
    found = []
    for n, other in against:
        gain = bootstrap([[lines["adapted", n] - lines[other, n] for lines in by_line]], seed)
        found.append({"n": n, "against": other, **gain._asdict()})
    return found


def table(points: Sequence[Row], gains: Sequence[Row], problems: int) -> str:
    """Markdown."""
    lines = [
        f"Accuracy against budget, {problems} problems; a budget is the mean of one problem (seconds: median).",
        "",
        "| method | N | accuracy | 95% | student tokens | teacher tokens | seconds |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for p in points:
        accuracy = f"{p['mean']:.3f} | {p['low']:.3f} to {p['high']:.3f}"
        cost = f"{p['student_tokens']:.1f} | {p['teacher_tokens']:.1f} | {p['seconds']:.3f}"
        lines.append(f"| {NAMES[p['method']]} | {p['n']} | {accuracy} | {cost} |")
    if gains:
        lines += ["", "| adapted minus | N | accuracy | 95%, paired |", "|---|---:|---:|---|"]
    for g in gains:
        interval = f"{g['low']:+.3f} to {g['high']:+.3f}"
        lines.append(f"| {NAMES[g['against']]} | {g['n']} | {g['mean']:+.3f} | {interval} |")
    return "\n".join(lines)


def picture(path: Path, points: Sequence[Row]) -> None:
    """Accuracy against student tokens (left) and against teacher tokens (right), one line a method."""
    from experiments.reporting.plots import _pyplot

    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True, layout="constrained")
    for axis, cost in zip(axes, ("student_tokens", "teacher_tokens"), strict=True):
        for index, method in enumerate(NAMES):
            mine = sorted((p for p in points if p["method"] == method), key=lambda p: p["n"])
            if mine:
                x, y = [p[cost] for p in mine], [p["mean"] for p in mine]
                error = [[p["mean"] - p["low"] for p in mine], [p["high"] - p["mean"] for p in mine]]
                axis.errorbar(x, y, error, color=f"C{index}", marker="o", capsize=2, label=NAMES[method])
        axis.set(xlabel=f"{cost.replace('_', ' ')} a problem", ylabel="accuracy")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(folder: Path, rows: Sequence[Row], seed: int) -> str:
    """curve.json, curve.md and curve.png; returns the table."""
    points, gains = curve(rows), differences(rows, seed)
    text = table(points, gains, len(rows))
    (folder / "curve.json").write_text(json.dumps({"points": points, "differences": gains}, indent=1) + "\n")
    (folder / "curve.md").write_text(text + "\n")
    picture(folder / "curve.png", points)
    return text
