"""The observer: a small RWKV-7 that reads the same tokens replicates the states of a large one.

Maps P_l take its states to the large model's (see `state_map`); they are fitted in closed form to
`sum_l |P_l S^_t - S_t|^2 / |S_t|^2`. With corrections it is a Luenberger observer: every so many tokens the innovation
is measured and fed back through maps Q of the other direction, `S^ <- S^ + gain Q (S - P S^)`. No weight changes; what
can be trained further is the small model's S_0 together with the maps, see `make_refine_step`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import surgery
from state_tuning.core.divergence import apply_gradients, kl_sums
from state_tuning.core.objective import Batch
from state_tuning.core.train import TuneState
from state_tuning.observer import state_map
from state_tuning.observer.state_map import Maps


@dataclasses.dataclass(frozen=True)
class ObserverConfig:
    """How the maps are fitted, and when the states are compared."""

    every: int = 16
    """Tokens between two looks at the states, and between two corrections."""
    terms: int = 1
    """Factor pairs for each pair of heads."""
    iterations: int = 20
    """Rounds of alternating least squares."""
    ridge: float = 1e-5
    samples: int = 512
    """States that the maps are fitted to, at most."""

    def __post_init__(self):
        if min(self.every, self.terms, self.iterations, self.samples) < 1:
            raise ValueError("every, terms, iterations and samples must be at least 1")


class Frozen(NamedTuple):
    """A model and its weights."""

    model: RWKV7
    params: PyTree


class Observer(NamedTuple):
    """The maps of both directions."""

    up: Maps
    """From the small model's states to the large one's."""
    down: Maps
    """Back."""


class Trail(NamedTuple):
    """What was seen at the ends of N segments, before any correction there."""

    small: Float[Array, "N l B h v k"]
    large: Float[Array, "N L B H V K"]
    predicted: Float[Any, "N L B H V K"]
    """P S^; None without maps."""
    valid: Bool[Array, "N B"]
    """False where a row had ended."""
    kl_logits: Float[Array, "B"]
    """KL(large | small) of the next-token distributions, summed over valid tokens, nats."""
    kl_state: Float[Array, "B"]
    """KL(large | large, but from P S^ at the start of each segment), summed over valid tokens from segment 1 on."""
    tokens: Float[Array, "B"]
    tokens_state: Float[Array, "B"]


class Report(NamedTuple):
    """How well the large model is observed, on one batch of text."""

    r2: Float[np.ndarray, "L"]
    """Of the state in each layer of the large model."""
    kl_logits: float
    """KL(large | small), nats per token."""
    kl_state: float
    """What the large model loses by going on from the observed matrices, nats per token."""


def fit(
    small: Frozen, large: Frozen, batches: Iterable[Batch], config: ObserverConfig, key: Key[Array, ""]
) -> Observer:
    """Maps of both directions from the two models' states on the same text.

    Raises: ValueError if no row is longer than `config.every` tokens.
    """
    found = [watch(small, large, None, batch, config.every) for batch in batches]
    x = np.concatenate([_samples(trail.small, trail.valid) for trail in found])
    y = np.concatenate([_samples(trail.large, trail.valid) for trail in found])
    if not len(x):
        raise ValueError(f"observer: no row has {config.every} tokens; give longer text or a smaller `every`")
    pick, up, down = jax.random.split(key, 3)
    chosen = np.asarray(jax.random.permutation(pick, len(x)))[: config.samples]
    settings = {"terms": config.terms, "iterations": config.iterations, "ridge": config.ridge}
    small_states, large_states = jnp.asarray(x[chosen]), jnp.asarray(y[chosen])
    return Observer(
        state_map.fit(small_states, large_states, up, **settings),
        state_map.fit(large_states, small_states, down, **settings),
    )


def report(observer: Observer, small: Frozen, large: Frozen, batch: Batch, every: int, gain: float = 0.0) -> Report:
    """R^2 and KL on held-out text; with a `gain`, of the observer that is corrected every `every` tokens.

    Raises: ValueError if no row is longer than `every` tokens.
    """
    if not np.asarray(batch["valid"])[:, every:].any():
        raise ValueError(
            f"observer: no held-out row is longer than {every} tokens; give longer text or a smaller `every`"
        )
    trail = watch(small, large, observer, batch, every, gain)
    predicted, actual = (_samples(x, trail.valid).swapaxes(0, 1) for x in (trail.predicted, trail.large))
    r2 = state_map.explained(jnp.asarray(predicted), jnp.asarray(actual))
    kl_logits, kl_state, tokens, tokens_state = (float(np.sum(x)) for x in jax.device_get(trail[4:]))
    return Report(r2, kl_logits / tokens, kl_state / tokens_state)


def watch(
    small: Frozen,
    large: Frozen,
    observer: Observer | None,
    batch: Batch,
    every: int,
    gain: float = 0.0,
    start: State | None = None,
) -> Trail:
    """Run both models over a batch, segment by segment.

    start: the small model's unbatched initial state, None for zero. gain: of the correction, 0 for none.
    """
    start = zero_state(small.model.config, None) if start is None else start
    data = {name: _segments(jnp.asarray(batch[name]), every) for name in ("tokens", "valid")}
    return _watch(small.model, large.model, small.params, large.params, observer, start, data, jnp.float32(gain))


@partial(jax.jit, static_argnums=(0, 1))
def _watch(small_model, large_model, small_params, large_params, observer, start: State, data, gain) -> Trail:
    rows = data["tokens"].shape[1]
    small, large = _call(small_model, small_params), _call(large_model, large_params)
    zero = zero_state(large_model.config, rows)

    def segment(carry, part):
        ours, theirs, index = carry
        tokens, valid = part["tokens"], part["valid"]
        mask = valid.astype(jnp.float32)
        if observer is not None:
            observed = theirs._replace(wkv=state_map.apply(observer.up, ours.wkv))
            guess, _ = large(tokens, observed, valid=valid, method="hidden")
        hidden, ours = small(tokens, ours, valid=valid, method="hidden")
        wanted, theirs = large(tokens, theirs, valid=valid, method="hidden")
        kl = kl_sums(wanted, _head(large), hidden, _head(small), mask)
        out = {"small": ours.wkv, "large": theirs.wkv, "valid": valid[:, -1], "kl": kl, "tokens": mask.sum(-1)}
        if observer is not None:
            predicted = state_map.apply(observer.up, ours.wkv)
            later = jnp.where(index > 0, mask, 0.0)
            kl_state = kl_sums(wanted, _head(large), guess, _head(large), later)
            out |= {"predicted": predicted, "kl_state": kl_state, "later": later.sum(-1)}
            ours = ours._replace(wkv=ours.wkv + gain * state_map.apply(observer.down, theirs.wkv - predicted))
        return (ours, theirs, index + 1), out

    first = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), start, zero_state(small_model.config, None))
    carry = (surgery.broadcast(first, rows), zero, jnp.int32(0))
    _, seen = jax.lax.scan(segment, carry, data)
    nothing = jnp.zeros_like(seen["kl"])
    return Trail(
        seen["small"], seen["large"], seen.get("predicted"), seen["valid"], seen["kl"].sum(0),
        seen.get("kl_state", nothing).sum(0), seen["tokens"].sum(0), seen.get("later", nothing).sum(0),
    )  # fmt: skip


RefineStep = Callable[[PyTree, PyTree, TuneState, Batch], tuple[TuneState, dict[str, Array]]]


def refinable(observer: Observer, small: RWKV7) -> dict[str, Any]:
    """What `make_refine_step` trains: the factors of the upward maps, and the small model's S_0, zero at start."""
    return {"u": observer.up.u, "w": observer.up.w, "s": zero_state(small.config, None).wkv}


def make_refine_step(
    small: RWKV7, large: RWKV7, observer: Observer, optimizer: optax.GradientTransformation, config: ObserverConfig
) -> RefineStep:
    """A jitted `step(small params, large params, tuned, batch) -> (tuned, metrics)`; `tuned` is donated.

    The loss is the whole `sum_l |P_l S^_t - S_t|^2 / |S_t|^2 + KL(large | small)`, of which the maps' closed form fits
    the first term alone. `tuned` comes from `train.init(optimizer, refinable(observer, small))`.
    """
    source = np.asarray(observer.up.source)

    def step(small_params, large_params, tuned: TuneState, batch: Batch):
        data = {name: _segments(jnp.asarray(batch[name]), config.every) for name in ("tokens", "valid")}

        def loss(tree: dict[str, Array]) -> Array:
            start = zero_state(small.config, None)._replace(wkv=tree["s"])
            trail = _watch(small, large, small_params, large_params, None, start, data, jnp.float32(0))
            up = Maps(source, tree["u"], tree["w"])
            predicted = jax.lax.map(lambda x: state_map.apply(up, x), trail.small)
            return _relative_error(predicted, trail.large, trail.valid) + trail.kl_logits.sum() / trail.tokens.sum()

        return apply_gradients(optimizer, tuned, *jax.value_and_grad(loss)(tuned.trainable))

    return jax.jit(step, donate_argnums=2)


def _relative_error(predicted: Array, actual: Array, valid: Array) -> Float[Array, ""]:
    """sum_l |predicted - S|^2 / |S|^2 over valid rows and times."""
    actual, used = jax.lax.stop_gradient(actual), valid[:, None, :, None, None, None]
    error = jnp.where(used, jnp.square(predicted - actual), 0.0).sum((0, 2, 3, 4, 5))
    return (error / jnp.maximum(jnp.where(used, jnp.square(actual), 0.0).sum((0, 2, 3, 4, 5)), 1e-30)).sum()


def _call(model: RWKV7, params: PyTree) -> Callable[..., Any]:
    apply: Callable[..., Any] = model.apply
    return partial(apply, {"params": params})


def _head(call: Callable[..., Any]) -> Callable[[Array], Any]:
    return lambda x: call(x, method="logits")


def _segments(x: Array, every: int) -> Array:
    """[B, T] -> [n, B, every], filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % every)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, every), 1, 0)


def _samples(states: Any, valid: Any) -> Float[np.ndarray, "N L H V K"]:
    """Host samples of [n, L, B, H, V, K] at valid times."""
    x = np.moveaxis(np.asarray(states), 2, 1)
    return x[np.asarray(valid)]
