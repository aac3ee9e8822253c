"""Picture of the study of test-time scaling (PNG)."""

from collections.abc import Mapping
from pathlib import Path

from experiments.reporting.accuracy_curve import METHODS
from experiments.reporting.plots import pyplot, save_figure

LINES = ("greedy", ":"), ("larger", "--")
LABELS = {name: METHODS[name] for name in ("self_consistency", "best_of_n", "weighted_vote")} | {
    "search_best": "search in state space, best",
    "reverse": "adapted, greedy",
    "reverse_best": "adapted, best of its chains",
    "reward": "adapted by the reward, greedy",
}


def accuracy(path: Path, bodies: Mapping[str, Mapping[str, object]]) -> None:
    """Draws accuracy with its 95% interval against the number of chains, a panel a benchmark."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(bodies), figsize=(2.5 + 3.2 * len(bodies), 4), squeeze=False, layout="constrained"
    )
    for axis, (task, body) in zip(axes.flat, bodies.items(), strict=True):
        points = body["points"]
        assert isinstance(points, dict)
        for name, style in LINES:
            if f"{name}@1" in points:
                level = 100 * points[f"{name}@1"][0]
                axis.axhline(level, color="0.4", linestyle=style, linewidth=1, label=METHODS[name])
        for index, (method, label) in enumerate(LABELS.items()):
            mine = sorted((int(n), value) for key, value in points.items() for m, n in [key.split("@")] if m == method)
            if mine:
                # Beside each other, so that intervals can be told apart.
                x, y = [n + 0.18 * (index - 3) for n, _ in mine], [100 * one[0] for _, one in mine]
                error = [[100 * (m - low) for _, (m, low, *_) in mine], [100 * (one[2] - one[0]) for _, one in mine]]
                axis.errorbar(
                    x, y, error, color=f"C{index}", marker="o", markersize=4, capsize=2, linewidth=1, label=label
                )
        axis.set_xticks(sorted({int(key.split("@")[1]) for key in points if key.startswith("best_of_n@")}))
        axis.set(title=task, xlabel="chains", ylabel="accuracy, % (95%)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save_figure(path, figure)
