"""Pictures of a study of curves (PNG)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.reporting.plots import pyplot, save_figure
from experiments.study.curves import summary
from experiments.study.curves.plan import VANILLA, Place
from experiments.study.curves.report import Study

STEPS, SECONDS = "accuracy.png", "speed.png"
ACROSS = 3
"""Panels beside each other at most."""


def draw(study: Study, folder: Path, prefix: str = "") -> list[str]:
    """Draws accuracy against steps and, where steps were timed, against seconds; returns the names."""
    names = [f"{prefix}{STEPS}"]
    _curves(study, folder / names[0], "steps", lambda row, task: 1.0, [budget for budget in study.budgets if budget])
    if study.seconds:
        names.append(f"{prefix}{SECONDS}")
        _curves(study, folder / names[1], "seconds, without compilation", _seconds(study))
    return names


def _seconds(study: Study) -> Callable[[str, str], float | None]:
    return lambda row, task: study.seconds.get(row, {}).get(task)


def _curves(
    study: Study, path: Path, label: str, scale: Callable[[str, str], float | None], ticks: Sequence[int] = ()
) -> None:
    """Draws a panel a benchmark, a line a row with its intervals; the untuned model as a dotted line."""
    plt = pyplot()
    tuned = [place for place in study.found if place.row != VANILLA] or list(study.found)
    tasks = [task for task in study.tasks if any(place.task == task for place in tuned)]
    rows = [row for row in study.rows if any(place.row == row for place in tuned)]
    across = min(ACROSS, max(1, len(tasks)))
    down = -(-max(1, len(tasks)) // across)
    size = (1.6 + 3.3 * across, 3.8 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    colours = plt.get_cmap("tab20").colors
    for axis, task in zip(axes.flat, tasks, strict=False):
        metric = study.headlines[task]
        base = study.found.get(Place(VANILLA, task, 0))
        if base:
            axis.axhline(100 * summary.interval(base, metric).mean, color="0.5", linestyle=":", linewidth=1)
        for index, row in enumerate(rows):
            cells = [study.found[p] for b in study.budgets if (p := Place(row, task, b)) in study.found]
            each = scale(row, task)
            if not cells or each is None:
                continue
            spans = [summary.interval(one, metric) for one in cells]
            x, y = [one[0]["steps"] * each for one in cells], [100 * one.mean for one in spans]
            error = [[100 * (s.mean - s.low) for s in spans], [100 * (s.high - s.mean) for s in spans]]
            colour = colours[index % len(colours)]
            axis.errorbar(x, y, error, color=colour, marker="o", markersize=3, capsize=2, linewidth=1, label=row)
        axis.set(title=task, xscale="log", xlabel=label, ylabel=f"{metric}, % (95%)")
        axis.set_ylim(-2, 102)
        axis.minorticks_off()
        if ticks:
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        axis.grid(alpha=0.3)
    handles = {
        text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=7)
    save_figure(path, figure)
