"""Accuracy against budget: outcomes of answered problems -> curve, table, picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from experiments.reporting.json_text import json_text
from experiments.reporting.plots import pyplot, save_figure
from experiments.reporting.statistics import bootstrap, few_records, wilson
from experiments.reporting.tables import markdown_table
from rwkv7_jax.checkpoint.files import write_text

METHODS = {
    "greedy": "greedy",
    "self_consistency": "self-consistency",
    "best_of_n": "best-of-N, same scorer",
    "weighted_vote": "weighted vote, same scorer",
    "added": "larger model's scores added",
    "adapted": "adapted",
    "adapted_vote": "adapted, weighted vote",
    "search": "search in state space, weighted vote",
    "larger": "larger model alone",
}
"""Labels of the methods, in the order of the table. N counts chains: K s + 1 after s steps of adaptation, the answer
included."""
ADAPTED = ("adapted", "adapted_vote")
"""What adaptation gives."""
CONTROLS = ("self_consistency", "best_of_n", "weighted_vote", "added")
"""What it is compared with."""

FILES = ("curve.json", "curve.md", "curve.png")
"""What `write` leaves."""


class BudgetOutcome(TypedDict):
    """How one method did on a problem with one budget."""

    method: str
    n: int
    correct: float
    student_tokens: int
    teacher_tokens: int
    seconds: float


class Problem(TypedDict):
    """One answered problem."""

    lines: Sequence[BudgetOutcome]


class CurvePoint(TypedDict):
    """One method and N: accuracy with its 95% interval, mean tokens, median seconds a problem."""

    method: str
    n: int
    mean: float
    low: float
    high: float
    student_tokens: float
    teacher_tokens: float
    seconds: float


class Gain(TypedDict):
    """Accuracy of the adapted model minus that of a control, with the paired 95% interval."""

    n: int
    against: str
    mean: float
    low: float
    high: float
    method: NotRequired[str]
    """Of the adapted model; `adapted` if not said."""


def curve(problems: Sequence[Problem]) -> list[CurvePoint]:
    """Computes one point for each method and N, with the Wilson interval of its accuracy."""
    groups: dict[tuple[str, int], list[BudgetOutcome]] = {}
    for problem in problems:
        for outcome in problem["lines"]:
            groups.setdefault((outcome["method"], outcome["n"]), []).append(outcome)
    order = list(METHODS)
    points: list[CurvePoint] = []
    for (method, n), outcomes in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        accuracy = wilson(int(sum(one["correct"] for one in outcomes)), len(outcomes))
        points.append({
            "method": method, "n": n, "mean": accuracy.mean, "low": accuracy.low, "high": accuracy.high,
            "student_tokens": statistics.fmean(one["student_tokens"] for one in outcomes),
            "teacher_tokens": statistics.fmean(one["teacher_tokens"] for one in outcomes),
            "seconds": statistics.median(one["seconds"] for one in outcomes),
        })  # fmt: skip
    return points


def differences(problems: Sequence[Problem], seed: int) -> list[Gain]:
    """Computes adapted, alone and with its vote, minus each control at the same N (`added` has no N), problem by
    problem, with a paired 95% bootstrap interval."""
    correct = [{(one["method"], one["n"]): one["correct"] for one in problem["lines"]} for problem in problems]
    found: list[Gain] = []
    for method, n in sorted((key for key in correct[0] if key[0] in ADAPTED), key=lambda key: (key[0], key[1])):
        for against in ((other, 1 if other == "added" else n) for other in CONTROLS):
            if against in correct[0]:
                values = [by_key[method, n] - by_key[against] for by_key in correct]
                mean, low, high = bootstrap([values], seed)
                found.append({"method": method, "n": n, "against": against[0], "mean": mean, "low": low, "high": high})
    return found


def table(points: Sequence[CurvePoint], gains: Sequence[Gain], problems: int) -> str:
    """Returns both as Markdown tables."""
    lines = [["method", "N", "accuracy", "95%", "student tokens", "teacher tokens", "seconds"]]
    for p in points:
        accuracy = [f"{p['mean']:.3f}", f"{p['low']:.3f} to {p['high']:.3f}"]
        cost = [f"{p['student_tokens']:.1f}", f"{p['teacher_tokens']:.1f}", f"{p['seconds']:.3f}"]
        lines.append([METHODS[p["method"]], str(p["n"]), *accuracy, *cost])
    text = [
        f"Accuracy against budget, {problems} problems; a budget is the mean of one problem (seconds: median).",
        "",
        markdown_table(lines, "lrrlrrr"),
    ]
    if gains:
        lines = [["difference", "minus", "N", "accuracy", "95%, paired"]]
        for g in gains:
            interval = f"{g['low']:+.3f} to {g['high']:+.3f}"
            names = [METHODS[g.get("method", "adapted")], METHODS[g["against"]]]
            lines.append([*names, str(g["n"]), f"{g['mean']:+.3f}", interval])
        text += ["", markdown_table(lines, "llrrl")]
    if remark := few_records({"": problems}, "problems"):
        text += ["", *remark]
    return "\n".join(text)


def picture(path: Path, points: Sequence[CurvePoint]) -> None:
    """Draws accuracy against student tokens (left) and against teacher tokens (right), one line a method."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True, layout="constrained")
    for axis, cost in zip(axes, ("student_tokens", "teacher_tokens"), strict=True):
        for index, method in enumerate(METHODS):
            mine = sorted((p for p in points if p["method"] == method), key=lambda p: p["n"])
            if mine:
                x, y = [p[cost] for p in mine], [p["mean"] for p in mine]
                error = [[p["mean"] - p["low"] for p in mine], [p["high"] - p["mean"] for p in mine]]
                axis.errorbar(x, y, error, color=f"C{index}", marker="o", capsize=2, label=METHODS[method])
        axis.set(xlabel=f"{cost.replace('_', ' ')} a problem", ylabel="accuracy")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save_figure(path, figure)


def write(folder: Path, problems: Sequence[Problem], seed: int) -> str:
    """Writes curve.json, curve.md and curve.png; returns the table."""
    points, gains = curve(problems), differences(problems, seed)
    text = table(points, gains, len(problems))
    write_text(folder / "curve.json", json_text({"points": points, "differences": gains}, indent=1) + "\n")
    write_text(folder / "curve.md", text + "\n")
    picture(folder / "curve.png", points)
    return text
