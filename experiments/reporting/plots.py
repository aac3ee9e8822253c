"""Pictures of a run (PNG): loss curves, tuned states, a sweep of learning rates. matplotlib is imported when needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rwkv7_jax.checkpoint.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

MATRICES = 24
"""How many matrices of a state are drawn at most."""


def pyplot() -> ModuleType:
    """Returns matplotlib.pyplot, set up to draw into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(path: Path, figure: "Figure") -> None:
    """Writes a PNG atomically and frees the figure."""
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot().close(figure)


def smooth(values: Sequence[float], reach: int = 9) -> Float[np.ndarray, "N"]:
    """Computes the centred mean that is drawn in the loss curve, which does not lag behind the values.

    Args:
      values: one a step.
      reach: values on each side that count; towards the ends as many as there are on both sides.
    """
    found, last = np.asarray(values, np.float64), len(values) - 1
    sides = [min(reach, i, last - i) for i in range(len(found))]
    return np.asarray([found[i - side : i + side + 1].mean() for i, side in enumerate(sides)])


def loss_curves(
    path: Path, curves: dict[str, list[tuple[int, float]]], held_out: dict[str, tuple[float, float]]
) -> None:
    """Draws training loss by step, and the held-out loss without and with the tuned state, a panel a job.

    Args:
      path: of the PNG.
      curves: name -> [(step, loss in nats per completion token)].
      held_out: name -> (vanilla, tuned) in the same unit.
    """
    plt = pyplot()
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis, (name, points) in zip(axes.flat, curves.items(), strict=False):
        x, y = np.asarray([p[0] for p in points]), [p[1] for p in points]
        axis.plot(x, y, color="C0", alpha=0.25, linewidth=1)
        axis.plot(x, smooth(y), color="C0", linewidth=1.8, label="training (smoothed)")
        before, after = held_out[name]
        axis.axhline(before, color="C1", linestyle="--", label=f"held-out, vanilla: {before:.3f}")
        axis.axhline(after, color="C2", linestyle="-.", label=f"held-out, tuned: {after:.3f}")
        axis.set(title=name, xlabel="step", ylabel="completion loss (nats per token)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    save_figure(path, figure)


def state_maps(path: Path, wkv: Float[np.ndarray, "L H V K"], title: str) -> None:
    """Draws the Frobenius norm of S_0 by layer and head (left) and the matrices themselves (right).

    Args:
      path: of the PNG.
      wkv: S_0 [L, H, V, K]; of more than `MATRICES` matrices the largest are drawn.
      title: of the picture.
    """
    plt = pyplot()
    norms = np.sqrt(np.square(wkv, dtype=np.float64).sum((-2, -1)))
    shown = np.sort(np.argsort(-norms, axis=None, kind="stable")[:MATRICES])
    columns = wkv.shape[1] if len(shown) == norms.size and wkv.shape[1] <= 6 else min(6, len(shown))
    rows = -(-len(shown) // columns)
    height = max(3.2, 1.45 * rows + 0.9)
    figure = plt.figure(figsize=(3.6 + 1.45 * columns + 0.8, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3.6, 1.45 * columns + 0.8])
    _norm_map(left, norms)
    limit = float(np.quantile(np.abs(wkv), 0.995)) or 1.0
    axes = right.subplots(rows, columns, squeeze=False)
    image = None
    for axis, index in zip(axes.flat, shown, strict=False):
        layer, head = np.unravel_index(index, norms.shape)
        image = axis.imshow(wkv[layer, head], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"layer {layer}, head {head}", fontsize=8)
        axis.set(xticks=[], yticks=[])
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    part = "" if len(shown) == norms.size else f", the {len(shown)} largest of {norms.size}"
    right.suptitle(f"S_0 (rows: value, columns: key){part}", fontsize=10)
    right.colorbar(image, ax=axes, label="entry (colours clipped at the 99.5% quantile)", fraction=0.04)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)


def _norm_map(figure: "SubFigure", norms: Float[np.ndarray, "L H"]) -> None:
    """Heat-map of [L,H] norms, with the numbers written where there is room."""
    axis = figure.subplots()
    image = axis.imshow(norms, cmap="viridis", aspect="auto", vmin=0.0, interpolation="nearest")
    axis.set(xlabel="head", ylabel="layer", title="norm of S_0")
    for ticks, size in ((axis.set_xticks, norms.shape[1]), (axis.set_yticks, norms.shape[0])):
        ticks(range(0, size, -(-size // 12)))
    if norms.size <= 48:
        middle = norms.max() / 2
        for (layer, head), value in np.ndenumerate(norms):
            color = "w" if value < middle else "k"
            axis.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axis, label="Frobenius norm")


def sweep_curves(
    path: Path, losses: Mapping[str, Mapping[float, tuple[float, float, float]]], vanilla: Mapping[str, float]
) -> None:
    """Draws the held-out loss by learning rate, a panel a task.

    Args:
      path: of the PNG.
      losses: task -> rate -> (mean, least, largest) over seeds, nats per token.
      vanilla: task -> loss of the zero state.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, len(losses), figsize=(3.6 * len(losses), 3.2), squeeze=False, layout="constrained")
    for axis, (task, by_rate) in zip(axes.flat, losses.items(), strict=True):
        rates = sorted(by_rate)
        mean, low, high = (np.asarray([by_rate[rate][i] for rate in rates]) for i in range(3))
        axis.loglog(rates, mean, marker="o", label="tuned, mean of seeds")
        axis.fill_between(rates, low, high, alpha=0.25, label="range of seeds")
        axis.axhline(vanilla[task], color="C1", linestyle="--", label="vanilla")
        axis.set(title=task, xlabel="peak learning rate", ylabel="held-out loss (nats per token)")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    save_figure(path, figure)
