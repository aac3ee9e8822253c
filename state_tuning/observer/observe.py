"""The observer: a small RWKV-7 that reads the same tokens replicates the states of a large one.

Maps P_l take its states to the large model's (see `state_map`); they are fitted in closed form to
`sum_l |P_l S^_t - S_t|^2 / |S_t|^2`. With corrections it is a Luenberger observer: every so many tokens the innovation
is measured and fed back through maps Q of the other direction, `S^ <- S^ + gain Q (S - P S^)`. Here no weight changes;
what can be trained further is the small model's S_0 together with the maps, see `make_refine_step`, or its weights, see
`learn`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import surgery
from state_tuning.core.divergence import kl_sums
from state_tuning.core.objective import Batch, Head, cut
from state_tuning.core.train import Metrics, TuneState, guarded_update
from state_tuning.observer import state_map
from state_tuning.observer.state_map import Maps

__all__ = [
    "Observer", "ObserverConfig", "Report", "Trajectories", "fit", "fit_maps", "make_refine_step", "refinable",
    "report", "trajectories",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ObserverConfig:
    """How the maps are fitted, and when the states are compared."""

    every: int = 16
    """Tokens between two comparisons of the states, and between two corrections."""
    terms: int = 1
    """Factor pairs for each pair of heads."""
    iterations: int = 20
    """Rounds of alternating least squares."""
    ridge: float = 1e-5
    """Of the regressions, relative to the mean eigenvalue."""
    samples: int = 512
    """States that the maps are fitted to, at most."""
    reads: Literal["paired", "all"] = "paired"
    """Which layers of the small model a layer of the large one is read off: that of the same depth, or all."""
    bias: bool = False
    """Whether a constant is fitted too."""
    saturating: bool = False
    """Whether each head is read a second time with entries that saturate."""

    def __post_init__(self):
        if self.reads not in ("paired", "all"):
            raise ValueError(f"reads is {self.reads!r:.60}, it must be paired or all")
        if min(self.every, self.terms, self.iterations, self.samples) < 1:
            raise ValueError("every, terms, iterations and samples must be at least 1")


class Observer(NamedTuple):
    """The maps of both directions."""

    up: Maps
    """From the small model's states to the large one's."""
    down: Maps
    """Back."""


class Trajectories(NamedTuple):
    """The states of both models at the ends of N segments, before any correction there."""

    small: Float[Array, "N l B h v k"]
    """S^, the matrices of the small model."""
    large: Float[Array, "N L B H V K"]
    """S, those of the large one."""
    predicted: Float[Array, "N L B H V K"] | None
    """P S^; None without maps."""
    valid: Bool[Array, "N B"]
    """False where a sequence had ended."""
    kl_logits: Float[Array, "B"]
    """KL(large | small) of the next-token distributions, summed over valid tokens, nats."""
    kl_state: Float[Array, "B"]
    """KL(large | large, but from P S^ at the start of each segment), summed over valid tokens from segment 1 on."""
    tokens: Float[Array, "B"]
    """Tokens that `kl_logits` sums over."""
    tokens_state: Float[Array, "B"]
    """Tokens that `kl_state` sums over."""


class Report(NamedTuple):
    """How well the large model is observed, on one batch of text."""

    r2: Float[np.ndarray, "L"]
    """Of the state in each layer of the large model."""
    kl_logits: float
    """KL(large | small), nats per token."""
    kl_state: float
    """What the large model loses by going on from the observed matrices, nats per token."""


def fit(
    small: LanguageModel, large: LanguageModel, batches: Iterable[Batch], config: ObserverConfig, key: Key[Array, ""]
) -> Observer:
    """Fits the maps of both directions to the two models' states on the same text.

    Args:
      small: the observer's model.
      large: the model that is observed.
      batches: text [B, T], in the tokens of both.
      config: how the maps are fitted.
      key: of the sampled states and the random start.

    Returns:
      The maps.

    Raises:
      ValueError: no sequence is longer than `config.every` tokens.
    """
    found = [trajectories(small, large, None, batch, config.every) for batch in batches]
    x = np.concatenate([_samples(one.small, one.valid) for one in found])
    y = np.concatenate([_samples(one.large, one.valid) for one in found])
    if not len(x):
        raise ValueError(f"observer: no row has {config.every} tokens; give longer text or a smaller `every`")
    pick, up, down = jax.random.split(key, 3)
    chosen = np.asarray(jax.random.permutation(pick, len(x)))[: config.samples]
    small_states, large_states = jnp.asarray(x[chosen]), jnp.asarray(y[chosen])
    up_maps = fit_maps(small_states, large_states, config, up)
    return Observer(up_maps, fit_maps(large_states, small_states, config, down))


def fit_maps(
    source: Float[Array, "N l h v k"], target: Float[Array, "N L H V K"], config: ObserverConfig, key: Key[Array, ""]
) -> Maps:
    """Fits the maps of one direction as `config` says.

    Args:
      source: states of one model.
      target: states of the other at the same tokens.
      config: how the maps are fitted.
      key: of the random start.

    Returns:
      The maps from source to target.
    """
    names = ("terms", "iterations", "ridge", "bias", "saturating")
    options = {name: getattr(config, name) for name in names}
    every = [list(range(source.shape[1]))] * target.shape[1]
    return state_map.fit(source, target, key, pairs=None if config.reads == "paired" else every, **options)


def report(
    observer: Observer, small: LanguageModel, large: LanguageModel, batch: Batch, every: int, gain: float = 0.0
) -> Report:
    """Measures R^2 and KL on held-out text.

    Args:
      observer: the maps.
      small: the observer's model.
      large: the model that is observed.
      batch: held-out text [B, T].
      every: tokens between two corrections.
      gain: of the correction; 0 for none.

    Returns:
      R^2 of the state by layer, and both KLs in nats per token.

    Raises:
      ValueError: no sequence is longer than `every` tokens.
    """
    if not np.asarray(batch["valid"])[:, every:].any():
        raise ValueError(
            f"observer: no held-out row is longer than {every} tokens; give longer text or a smaller `every`"
        )
    seen = trajectories(small, large, observer, batch, every, gain)
    predicted, actual = (_samples(x, seen.valid).swapaxes(0, 1) for x in (seen.predicted, seen.large))
    r2 = state_map.r_squared(jnp.asarray(predicted), jnp.asarray(actual))
    kl_logits, kl_state, tokens, tokens_state = (float(np.sum(x)) for x in jax.device_get(seen[4:]))
    return Report(r2, kl_logits / tokens, kl_state / tokens_state)


def trajectories(
    small: LanguageModel,
    large: LanguageModel,
    observer: Observer | None,
    batch: Batch,
    every: int,
    gain: float = 0.0,
    start: State | None = None,
) -> Trajectories:
    """Runs both models over a batch, segment by segment.

    Args:
      small: the observer's model.
      large: the model that is observed.
      observer: the maps; None: nothing is predicted.
      batch: text [B, T].
      every: tokens of a segment.
      gain: of the correction; 0 for none.
      start: the small model's unbatched initial state; None is zero.

    Returns:
      The states, and the KLs of their logits.
    """
    start = zero_state(small.model.config, None) if start is None else start
    data = {name: cut(batch[name], every) for name in ("tokens", "valid")}
    weights = (small.params, large.params)
    return run_both(small.model, large.model, *weights, observer, start, data, jnp.float32(gain), judged=True)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="judged")
def run_both(
    small_model: RWKV7,
    large_model: RWKV7,
    small_params: Params,
    large_params: Params,
    observer: Observer | None,
    start: State,
    data: dict[str, Array],
    gain: Float[Array, ""] | None,
    *,
    judged: bool,
) -> Trajectories:
    """Runs both models over segments of text, see `trajectories`; differentiable.

    Args:
      small_model: the observer's model.
      large_model: the model that is observed.
      small_params: its weights.
      large_params: its weights.
      observer: the maps; None: nothing is predicted or corrected.
      start: the small model's unbatched initial state.
      data: `tokens` and `valid`, cut into segments [n, B, every].
      gain: of the correction; None: no correction.
      judged: whether the large model is run from the predicted states too, for `kl_state`.

    Returns:
      The states, and the KLs of their logits.
    """
    rows = data["tokens"].shape[1]
    small_head, large_head = _head(small_model, small_params), _head(large_model, large_params)
    zero = zero_state(large_model.config, rows)

    def segment(carry: tuple[State, State, Array], part: dict[str, Array]) -> tuple[PyTree, dict[str, Array]]:
        ours, theirs, index = carry
        tokens, valid = part["tokens"], part["valid"]
        mask = valid.astype(jnp.float32)
        if observer is not None and judged:
            observed = theirs._replace(wkv=state_map.apply(observer.up, ours.wkv))
            guess, _ = functional.hidden(large_model, large_params, tokens, observed, valid=valid)
        hidden, ours = functional.hidden(small_model, small_params, tokens, ours, valid=valid)
        wanted, theirs = functional.hidden(large_model, large_params, tokens, theirs, valid=valid)
        kl = kl_sums(wanted, large_head, hidden, small_head, mask)
        out = {"small": ours.wkv, "large": theirs.wkv, "valid": valid[:, -1], "kl": kl, "tokens": mask.sum(-1)}
        if observer is not None:
            out["predicted"] = predicted = state_map.apply(observer.up, ours.wkv)
            if judged:
                later = jnp.where(index > 0, mask, 0.0)
                out |= {"kl_state": kl_sums(wanted, large_head, guess, large_head, later), "later": later.sum(-1)}
            if gain is not None:
                innovation = state_map.apply(observer.down, theirs.wkv - predicted, difference=True)
                ours = ours._replace(wkv=ours.wkv + gain * innovation)
        return (ours, theirs, index + 1), out

    first = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), start, zero_state(small_model.config, None))
    carry = (surgery.broadcast(first, rows), zero, jnp.int32(0))
    _, seen = jax.lax.scan(segment, carry, data)
    nothing = jnp.zeros_like(seen["kl"])
    return Trajectories(
        seen["small"], seen["large"], seen.get("predicted"), seen["valid"], seen["kl"].sum(0),
        seen.get("kl_state", nothing).sum(0), seen["tokens"].sum(0), seen.get("later", nothing).sum(0),
    )  # fmt: skip


RefineStep = Callable[[Params, Params, TuneState, Batch], tuple[TuneState, Metrics]]


def refinable(observer: Observer, small: RWKV7) -> dict[str, Array]:
    """Returns what `make_refine_step` trains.

    Args:
      observer: fitted maps.
      small: the observer's model.

    Returns:
      The upward maps' factors `u`, `w` and, if there is one, `bias`, and the small model's S_0, zero, as `s`.
    """
    return {**state_map.factors(observer.up), "s": zero_state(small.config, None).wkv}


def make_refine_step(
    small: RWKV7, large: RWKV7, observer: Observer, optimizer: optax.GradientTransformation, config: ObserverConfig
) -> RefineStep:
    """Returns a jitted `step(small params, large params, tuned, batch) -> (tuned, metrics)`; `tuned` is donated.

    The loss is the whole `sum_l |P_l S^_t - S_t|^2 / |S_t|^2 + KL(large | small)`, of which the maps' closed form fits
    the first term alone.

    Args:
      small: the observer's model.
      large: the model that is observed.
      observer: fitted maps; their source layers stay.
      optimizer: any optax transform.
      config: tokens between two comparisons.

    Returns:
      The step. `tuned` comes from `train.init(optimizer, refinable(observer, small))`.
    """

    def step(small_params: Params, large_params: Params, tuned: TuneState, batch: Batch) -> tuple[TuneState, Metrics]:
        data = {name: cut(batch[name], config.every) for name in ("tokens", "valid")}

        def loss(tree: dict[str, Array]) -> Array:
            start = zero_state(small.config, None)._replace(wkv=tree["s"])
            weights = (small_params, large_params)
            seen = run_both(small, large, *weights, None, start, data, None, judged=False)
            up = observer.up._replace(**{name: tree[name] for name in state_map.factors(observer.up)})
            predicted = jax.lax.map(lambda x: state_map.apply(up, x), seen.small)
            return relative_error(predicted, seen.large, seen.valid).sum() + seen.kl_logits.sum() / seen.tokens.sum()

        return guarded_update(optimizer, tuned, *jax.value_and_grad(loss)(tuned.trainable))

    return jax.jit(step, donate_argnums=2)


def relative_error(
    predicted: Float[Array, "N L B H V K"], actual: Float[Array, "N L B H V K"], valid: Bool[Array, "N B"]
) -> Float[Array, "L"]:
    """Computes |predicted - S|^2 / |S|^2 of each layer, over valid rows and times; S is a constant."""
    actual, used = jax.lax.stop_gradient(actual), valid[:, None, :, None, None, None]
    error = jnp.where(used, jnp.square(predicted - actual), 0.0).sum((0, 2, 3, 4, 5))
    return error / jnp.maximum(jnp.where(used, jnp.square(actual), 0.0).sum((0, 2, 3, 4, 5)), 1e-30)


def _head(model: RWKV7, params: Params) -> Head:
    return lambda x: functional.logits(model, params, x)


def _samples(states: Array | None, valid: Array) -> Float[np.ndarray, "N L H V K"]:
    """Host samples of [n, L, B, H, V, K] at valid times."""
    x = np.moveaxis(np.asarray(states), 2, 1)
    return x[np.asarray(valid)]
