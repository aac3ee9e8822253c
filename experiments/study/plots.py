"""Pictures of the table (PNG). matplotlib is imported where it is used."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.config.study import LARGER
from experiments.reporting.accuracy_curve import METHODS
from experiments.reporting.plots import pyplot, save_figure, smooth
from experiments.study.labels import LABELS
from experiments.study.records import ByMethod, QueriesRecord, RateRecord, ScalingResult


def accuracies(path: Path, found: ByMethod, tasks: Sequence[str]) -> None:
    """Draws accuracy with its 95% interval for each method of the student, a panel a benchmark; vanilla as a line."""
    plt = pyplot()
    names = [name for name in found if not name.startswith(LARGER)]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(3.0 + 2.6 * len(tasks), 0.9 + 0.28 * len(names)), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, task in zip(axes.flat, tasks, strict=True):
        for place, name in enumerate(names):
            x = found[name].get(task)
            if x:
                error = [[100 * (x.mean - x.low)], [100 * (x.high - x.mean)]]
                axis.errorbar(100 * x.mean, place, xerr=error, fmt="o", color=_color(name), capsize=2, markersize=4)
        if task in found.get("vanilla", {}):
            axis.axvline(100 * found["vanilla"][task].mean, color="0.5", linestyle=":", linewidth=1)
        axis.set(title=task, xlabel="accuracy, % (95%)")
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(range(len(names)), [LABELS.get(name, name) for name in names], fontsize=8)
    axes[0, 0].invert_yaxis()
    save_figure(path, figure)


def _color(name: str) -> str:
    own = ("standard", "upscale", "upscale_median", "dbp", "upscale_dbp", "test_time", "observer")
    return "0.4" if name == "vanilla" else "C0" if name in own else "C1"


def scaling(path: Path, found: dict[str, ScalingResult]) -> None:
    """Draws accuracy against student tokens (top) and teacher tokens (bottom), a column a benchmark."""
    plt = pyplot()
    figure, axes = plt.subplots(2, len(found), figsize=(1 + 3.5 * len(found), 6.2), squeeze=False, layout="constrained")
    for column, (task, one) in enumerate(found.items()):
        for axis, cost in zip(axes[:, column], ("student_tokens", "teacher_tokens"), strict=True):
            for index, (method, label) in enumerate(METHODS.items()):
                mine = sorted((p for p in one["points"] if p["method"] == method), key=lambda p: p["n"])
                if mine:
                    x, y = [p[cost] for p in mine], [100 * p["mean"] for p in mine]
                    error = [[100 * abs(p["mean"] - p[end]) for p in mine] for end in ("low", "high")]
                    axis.errorbar(x, y, error, color=f"C{index}", marker="o", markersize=4, capsize=2, label=label)
            axis.set(xlabel=f"{cost.replace('_', ' ')} a problem", ylabel="accuracy, %", title=task)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save_figure(path, figure)


def conditions(path: Path, found: dict[str, list[tuple[int, float, float, float]]]) -> None:
    """Draws the condition number of C~ over steps: mean of layers, heads and cells, and the range of cells."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    names = {"standard": "plain Adam (R = I)", "dbp": "DBP", "whitened": "exact whitening"}
    for index, (name, label) in enumerate(names.items()):
        if name in found:
            step, mean, low, high = np.asarray(found[name]).T
            axis.plot(step, 10**mean, color=f"C{index}", marker="o", markersize=3, label=label)
            axis.fill_between(step, 10**low, 10**high, color=f"C{index}", alpha=0.2)
    axis.set(yscale="log", xlabel="step", ylabel="condition number of C~ (geometric mean)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(path, figure)


def queries(path: Path, records: Sequence[QueriesRecord]) -> None:
    """Draws |q_t| against t by layer: how strongly S_0 is still read; dotted, |psi(r_t)| of the upscaled part."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(records), figsize=(1 + 3.5 * len(records), 3.4), squeeze=False, sharey=True, layout="constrained"
    )
    styles = {"vanilla": ("q", "-", "|q_t|, zero state"), "standard": ("q", "--", "|q_t|, tuned state")}
    styles["upscale"] = ("psi", ":", "|psi(r_t)|, upscaled")
    for axis, record in zip(axes.flat, records, strict=True):
        for name, (key, line, label) in styles.items():
            for layer, values in enumerate(record["norms"].get(name, {}).get(key, [])):
                text = f"layer {layer}, {label}" if name == "vanilla" else label if layer == 0 else None
                axis.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-6), line, color=f"C{layer}", label=text)
        axis.set(title=record["task"], xlabel="token t", yscale="log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("norm, mean over heads and texts")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    save_figure(path, figure)


def rates(path: Path, tries: Sequence[RateRecord], tasks: Sequence[str]) -> None:
    """Draws the validation loss by learning rate, a panel a benchmark, a line a method."""
    plt = pyplot()
    names = [name for name in dict.fromkeys(one["row"] for one in tries) if name != "test_time"]
    colors = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(1, len(tasks), figsize=(1 + 3.5 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for axis, task in zip(axes.flat, tasks, strict=True):
        for index, name in enumerate(names):
            points = sorted((r["rate"], r["loss"]) for r in tries if r["row"] == name and r["task"] == task)
            if points:
                label = LABELS.get(name, name)
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colors[index % 20], label=label)
        axis.set(title=task, xscale="log", yscale="log", xlabel="peak learning rate", ylabel="validation loss (nats)")
        axis.grid(alpha=0.3, which="both")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    save_figure(path, figure)


def speed(path: Path, losses: dict[str, list[float]], seconds: dict[str, float]) -> None:
    """Draws the smoothed training loss minus plain Adam's after the same steps (left) and the same seconds (right).

    Right: the paired difference at a step, corrected by what Adam's smoothed loss falls in its additional seconds.

    Args:
      path: of the PNG.
      losses: method -> loss by step on the same batches; the first method is plain Adam.
      seconds: method -> of one step.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    base, *others = losses
    steps, trend = np.arange(1, len(losses[base]) + 1), smooth(losses[base], 32)
    for index, name in enumerate(others, 1):
        label = LABELS.get(name, name)
        paired = smooth(np.subtract(losses[name], losses[base]).tolist())
        axes[0].plot(steps, paired, color=f"C{index}", label=label)
        ahead = np.interp(steps * seconds[name] / seconds[base], steps, trend)
        axes[1].plot(steps * seconds[name], paired + trend - ahead, color=f"C{index}", label=label)
    for axis, label in zip(axes, ("step", "seconds, without compilation"), strict=True):
        axis.axhline(0, color="C0", linewidth=1, label="plain Adam")
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training loss minus Adam's, nats")
    axes[0].legend(fontsize=8)
    save_figure(path, figure)
