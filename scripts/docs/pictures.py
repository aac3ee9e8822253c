"""Draws the pictures of docs/concepts: python -m scripts.docs.pictures [--only NAME,...] [--steps 300] [--output DIR]

Every number in them comes from the embedded models: states that they reach, a state that is tuned here, maps that are
fitted here. With the 300 steps of the default it takes a few minutes on two cores.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import rwkv7_jax
import state_tuning
from experiments.build import EMBEDDED
from experiments.pocket import benchmarks, text
from experiments.tasks import TASKS
from rwkv7_jax import wkv_state
from state_tuning import observer, upscale
from state_tuning.core.objective import collate, encode_text
from state_tuning.dbp.correlations import record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[2] / "docs" / "concepts"
STYLE = {"font.size": 9, "svg.hashsalt": "rwkv7-jax", "axes.spines.top": False, "axes.spines.right": False}
FIRST, SECOND, GREY = "#00796b", "#e65100", "#78909c"
LAYER, HEAD = 1, 0
QUESTION = "Lena has 11 keys. Otto has 7 fewer than Lena. How many keys does Otto have?"


@functools.cache
def model(name: str = "student") -> rwkv7_jax.LanguageModel:
    """Returns an embedded model."""
    return rwkv7_jax.LanguageModel.load(EMBEDDED[f"pocket/{name}"])


@functools.cache
def calibration() -> dict[str, np.ndarray]:
    """Returns text of the pocket world [32, 128], which no picture's own text is from."""
    documents = text.documents(seed=1)
    examples = [one for _ in range(32) for one in encode_text(model().tokenizer, next(documents), 128)[:1]]
    return collate(examples, 128)


@functools.cache
def tuned(steps: int) -> state_tuning.TuneResult:
    """Returns a state tuned on sums in words, whose answers are their equations."""
    pairs = [TASKS["gsm8k"].to_example(record) for record in benchmarks.load("gsm8k", "train")]
    examples = [(turn(prompt.split("\nAnswer")[0].removeprefix("Question: ")), answer) for prompt, answer in pairs]
    return state_tuning.tune(model(), examples, steps=steps, learning_rate=3.0)


def turn(question: str) -> str:
    """Returns a user's turn, after which the model answers."""
    return f"User: {question}\n\nAssistant:"


def heat(axes: "Axes", matrix: np.ndarray, limit: float, title: str = "") -> None:
    """Draws a matrix: blue below zero, white, red above."""
    axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(GREY)


def box(axes: "Axes", place: tuple[float, float], size: tuple[float, float], words: str, colour: str = GREY) -> None:
    """Draws words in a round box around a place."""
    (x, y), (width, height) = place, size
    shape = matplotlib.patches.FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02", fc="white", ec=colour, lw=1.4
    )
    axes.add_patch(shape)
    axes.text(x, y, words, ha="center", va="center", fontsize=9)


def arrow(axes: "Axes", begin: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """Draws an arrow."""
    shape = {"arrowstyle": "-|>", "color": GREY, "lw": 1.4, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, begin, arrowprops=shape)


def states(_: int) -> "Figure":
    """One head's matrix while the model reads a text."""
    lm = model()
    read = next(one for one in text.documents(seed=7) if not set("?=") & set(one) and len(lm.encode(one)) > 64)
    ids = lm.encode(read)
    counts = [0, 1, 4, 16, 64]
    found = [np.asarray(lm.logits(ids[:n])[1].wkv if n else lm.zero_state().wkv)[LAYER, HEAD] for n in counts]
    figure, columns = plt.subplots(1, len(counts), figsize=(9, 2.5))
    for axes, count, matrix in zip(columns, counts, found, strict=True):
        heat(axes, matrix, np.percentile(np.abs(found[-1]), 98), f"after {count} token{'s' * (count != 1)}")
        axes.set_xlabel(f"norm {np.linalg.norm(matrix):.1f}", fontsize=8)
    columns[0].set_ylabel(f"S, {matrix.shape[0]} x {matrix.shape[1]}")
    figure.suptitle(f"“{' '.join(read.split())[:88]}…”", fontsize=9, style="italic")
    return figure


def answers(steps: int) -> "Figure":
    """The same model and question from the zero state and from a tuned one."""
    lm, result = model(), tuned(steps)
    figure = plt.figure(figsize=(9, 3.6))
    grid = figure.add_gridspec(2, 3, width_ratios=[2.2, 2.6, 3.2])
    matrices = np.asarray(result.state.state.wkv)
    for row, (name, state, colour) in enumerate((("zero", None, GREY), ("tuned", result.state, FIRST))):
        inner = grid[row, 0].subgridspec(2, matrices.shape[0], wspace=0.15, hspace=0.15)
        shown = matrices if state else np.zeros_like(matrices)
        for layer, head in np.ndindex(*shown.shape[:2]):
            limit = np.percentile(np.abs(matrices[layer]), 99)
            heat(figure.add_subplot(inner[head, layer]), shown[layer, head], limit)
        said = lm.generate(turn(QUESTION), state=state, temperature=0, max_new_tokens=24, stop="\n\n").strip()
        flow = figure.add_subplot(grid[row, 1:])
        flow.set_axis_off()
        flow.set_xlim(0, 6)
        flow.set_ylim(0, 1)
        arrow(flow, (0.0, 0.5), (0.55, 0.5))
        box(flow, (1.45, 0.5), (1.7, 0.62), "the same frozen model\nreads the question")
        arrow(flow, (2.4, 0.5), (3.0, 0.5))
        box(flow, (4.5, 0.5), (2.9, 0.62), said.splitlines()[0] if said else "(nothing)", colour)
        flow.text(-0.05, 0.97, f"from the {name} state", fontsize=9, ha="left", weight="bold")
    figure.suptitle(f"“{QUESTION}”", fontsize=9, style="italic")
    return figure


def losses(steps: int) -> "Figure":
    """The loss of tuning and the size of the state."""
    found = tuned(steps)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
    left.plot(np.arange(1, len(found.losses) + 1), found.losses, color=FIRST, lw=1)
    left.set(xlabel="step", ylabel="loss, nats a token", yscale="log", title="800 sums in words, no weight changes")
    norms = np.linalg.norm(np.asarray(found.state.state.wkv).reshape(model().config.n_layer, -1), axis=1)
    right.bar(np.arange(len(norms)), norms, color=SECOND, width=0.6)
    right.set(xlabel="layer", ylabel="norm of S_0", title="what was tuned", xticks=range(len(norms)))
    return figure


def token_shift(_: int) -> "Figure":
    """What a mix reads: a blend of this token and the last one, channel by channel."""
    lm = model()
    ids = lm.encode("The lamp is green.")
    before, now = (np.asarray(lm.logits(part)[1].att_shift, np.float32)[LAYER] for part in (ids[:-1], ids))
    share = np.asarray(lm.params["blocks"]["att"]["x_r"], np.float32)[LAYER - 1].reshape(-1)
    shown = slice(0, 48)
    rows = [("last token", before, "RdBu_r"), ("share of the last", share, "Greys"), ("this token", now, "RdBu_r")]
    rows.append(("what is read", now + (before - now) * share, "RdBu_r"))
    figure, panels = plt.subplots(len(rows), 1, figsize=(9, 2.2))
    for axes, (name, values, colours) in zip(panels, rows, strict=True):
        bounds = (0, 1) if colours == "Greys" else (-np.abs(now).max(), np.abs(now).max())
        axes.imshow(values[None, shown], aspect="auto", cmap=colours, vmin=bounds[0], vmax=bounds[1])
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    panels[-1].set_xlabel("channels of one layer of the embedded student")
    return figure


def upscaling(_: int) -> "Figure":
    """The two matrices, and how many directions the features have at two bandwidths."""
    lm, batch = model(), calibration()
    streams = record(lm.model, lm.params, batch)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.0), width_ratios=[1.2, 1])
    left.set_axis_off()
    left.set(xlim=(0, 6), ylim=(0, 3))
    box(left, (1.5, 2.3), (1.7, 0.9), "S_0\nV x K", FIRST)
    box(left, (4.2, 2.3), (2.3, 0.9), "S_ext\nV x F, new", SECOND)
    box(left, (1.5, 0.6), (1.7, 0.6), "query, K numbers")
    box(left, (4.2, 0.6), (2.3, 0.6), "F Gaussians of r")
    arrow(left, (1.5, 0.95), (1.5, 1.8))
    arrow(left, (4.2, 0.95), (4.2, 1.8))
    left.text(2.85, 2.3, "+", fontsize=16, ha="center", va="center")
    for bandwidth, colour in ((1.0, GREY), (0.35, SECOND)):
        settings = upscale.Upscale(size=3 * lm.config.head_size, bandwidth=bandwidth)
        fitted = upscale.fit(lm.model, lm.params, batch, settings, jax.random.key(0)).state.wkv
        seen = wkv_state.gaussian(streams.r[LAYER], *(x[LAYER][None] for x in (fitted.supports, fitted.gamma)))
        spectrum(right, np.asarray(seen)[:, :, HEAD][np.asarray(batch["valid"])], f"bandwidth {bandwidth}", colour)
    right.set(xlabel="direction", ylabel="share of E[ψψᵀ]", yscale="log", ylim=(1e-5, 1.3), title="eigenvalues")
    right.legend(frameon=False)
    return figure


def spectrum(axes: "Axes", rows: np.ndarray, name: str, colour: str) -> None:
    """Draws the eigenvalues of the rows' correlations as shares of their sum."""
    values = np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows / len(rows))[::-1]
    axes.plot(np.arange(1, len(values) + 1), np.maximum(values / values.sum(), 1e-9), color=colour, label=name)


def decorrelation(_: int) -> "Figure":
    """Correlated inputs before and after R, and what that does to gradient descent."""
    rng = np.random.default_rng(0)
    mixing = np.asarray([[1.0, 0.0], [0.95, 0.12]], np.float32)
    x = (rng.normal(size=(400, 2)) @ mixing.T).astype(np.float32)
    wanted, c = np.asarray([[1.0, -1.0]], np.float32), (x.T @ x / len(x)).astype(np.float32)
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(9, 2.9))
    for name, wrap, colour in (
        ("gradient descent", lambda inner: inner, GREY),
        ("the same with DBP", lambda inner: state_tuning.decorrelated(inner, rate=0.1), FIRST),
    ):
        optimizer = optax.with_extra_args_support(wrap(optax.sgd(0.5)))
        weight, found = jnp.zeros((1, 2)), []
        state = optimizer.init(weight)
        for _step in range(40):
            error = weight - wanted
            found.append(float(0.5 * (error @ c @ error.T)[0, 0]))
            moved, state = optimizer.update(error @ c, state, weight, correlations=jnp.asarray(c))
            weight = optax.apply_updates(weight, moved)
        third.plot(found, color=colour, label=name)
    r = np.asarray(state.r)
    for axes, cloud, title in ((first, x, "inputs x"), (second, x @ r.T, "R x after 40 steps")):
        axes.scatter(*cloud.T, s=4, color=FIRST, alpha=0.5)
        axes.set(title=title, aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[])
    third.set(xlabel="step", title="loss", yscale="log", ylim=(1e-8, 3e-2))
    third.legend(frameon=False, fontsize=8)
    return figure


def observed(_: int) -> "Figure":
    """Entries of the larger model's states against those that the maps give, on text that was not fitted."""
    small, large = model("student"), model("teacher")
    config = observer.ObserverConfig(every=16, iterations=5)
    found = observer.fit(small, large, [calibration()], config, jax.random.key(0))
    held_out = next(text.documents(seed=99))
    true = np.asarray(large.logits(held_out)[1].wkv)
    guess = np.asarray(observer.transfer(found.up, small.logits(held_out)[1], large.config).wkv)
    figure, panels = plt.subplots(1, len(true), figsize=(9, 2.7))
    for layer, axes in enumerate(panels):
        limit = np.abs(true[layer]).max()
        axes.scatter(true[layer].ravel(), guess[layer].ravel(), s=1, color=FIRST, alpha=0.25, rasterized=True)
        axes.plot([-limit, limit], [-limit, limit], color=SECOND, lw=1)
        axes.set(title=f"layer {layer}", aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set(xticks=[], yticks=[], xlabel="its own state")
    panels[0].set_ylabel("mapped from the\nsmall model's")
    return figure


def scaling(_: int) -> "Figure":
    """The loop of test-time scaling."""
    figure, axes = plt.subplots(figsize=(9, 2.9))
    axes.set_axis_off()
    axes.set(xlim=(0, 9), ylim=(0, 3))
    box(axes, (1.0, 2.2), (1.5, 0.7), "one prompt")
    box(axes, (3.3, 2.2), (2.0, 0.8), "small model\nfrom S_0 + Δ", FIRST)
    box(axes, (5.7, 2.2), (1.7, 0.7), "K samples")
    box(axes, (7.9, 2.2), (1.7, 0.8), "larger model\nreads them", SECOND)
    box(axes, (4.5, 0.6), (2.3, 0.7), "a gradient step on Δ", FIRST)
    box(axes, (7.9, 0.6), (1.9, 0.7), "vote over all samples")
    for begin, end in (((1.8, 2.2), (2.25, 2.2)), ((4.35, 2.2), (4.8, 2.2)), ((6.6, 2.2), (7.0, 2.2))):
        arrow(axes, begin, end)
    arrow(axes, (7.3, 1.75), (5.7, 0.7), -0.25)
    arrow(axes, (3.3, 0.7), (2.9, 1.75), -0.4)
    arrow(axes, (7.9, 1.75), (7.9, 1.0))
    axes.text(2.75, 1.2, "a few times", fontsize=8, color=GREY, ha="right")
    axes.text(8.0, 1.4, "at the end", fontsize=8, color=GREY)
    return figure


DRAWN: dict[str, Callable[[int], "Figure"]] = {
    "states": states,
    "answers": answers,
    "losses": losses,
    "token-shift": token_shift,
    "upscaling": upscaling,
    "decorrelation": decorrelation,
    "observer": observed,
    "test-time-scaling": scaling,
}


def main(argv: list[str] | None = None) -> int:
    """Draws the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", default=",".join(DRAWN), help="names, with commas")
    parser.add_argument("--steps", type=int, default=300, help="of the state that is tuned")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    with matplotlib.rc_context(STYLE):
        for name in args.only.split(","):
            figure = DRAWN[name](args.steps)
            figure.tight_layout()
            figure.savefig(args.output / f"{name}.svg", metadata={"Date": None}, dpi=120)
            plt.close(figure)
            print(args.output / f"{name}.svg", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
