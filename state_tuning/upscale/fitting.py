"""Kernel upscaling: an initial state over more key dimensions, of which a Gaussian feature map makes M out of K.

Three maps, each a state of `rwkv7_jax.wkv_state`: `residual` (read side only, the default), `recurrent` (written too),
and `literal` (the published formula unchanged, usually unstable). Here they are fitted to calibration text and made
trainable.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from rwkv7_jax import wkv_state
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import host
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import Streams
from state_tuning.core import surgery
from state_tuning.core.objective import Batch
from state_tuning.core.train import Method, TuneConfig
from state_tuning.dbp import correlations
from state_tuning.upscale import feature_map, stability

TRAINED = {"residual": ("s", "s_ext"), "recurrent": ("s", "s_ext", "gate"), "literal": ("s_ext",)}


@dataclasses.dataclass(frozen=True)
class Upscale:
    """Which map, and how it is fitted."""

    map: Literal["residual", "recurrent", "literal"] = "residual"
    """Which map, see the module `fitting`."""
    size: int = 0
    """M, the lifted key size, any number above K; 0 means 2 K. `residual` appends F = M - K kernel features."""
    supports: Literal["kmeans", "random"] = "kmeans"
    """Where the Gaussians stand: at centres of k-means, or at random points."""
    bandwidth: float = 0.35
    """Width of the Gaussians in units of the median heuristic. At 1 nearly all features are one direction, at this
    value they have at least half as many as the queries of S_0 (docs/results.md)."""
    tokens: int = 1024
    """Calibration tokens at most."""
    tune_base: bool = True
    """Tune S_0 beside the lifted part (`literal` has none)."""
    allow_unstable: bool = False
    """Go on although the stability criterion is violated."""

    def __post_init__(self):
        if self.map not in TRAINED:
            raise ValueError(f"map {self.map!r} is unknown: choose {', '.join(TRAINED)}")
        if self.supports not in ("kmeans", "random"):
            raise ValueError(f"supports {self.supports!r} are unknown: choose kmeans or random")
        if self.bandwidth <= 0:
            raise ValueError(f"bandwidth is {self.bandwidth}, it must be above 0")


class Fitted(NamedTuple):
    """The start of tuning: an unbatched state with the fitted map, its matrices zero, and how stable it is."""

    state: State
    """Unbatched, its `wkv` a state of `rwkv7_jax.wkv_state`."""
    stability: Float[np.ndarray, "L H"]
    """See `stability.worst`."""


def fit(model: RWKV7, params: Params, batch: Batch, upscale: Upscale, key: Key[Array, ""]) -> Fitted:
    """Fits the map of `upscale` to the streams of the frozen model on a batch of calibration text.

    Args:
      model: the model's description.
      params: its weights.
      batch: calibration text [B, T].
      upscale: which map, and how it is fitted.
      key: of the sampled tokens and supports.

    Returns:
      The unbatched state with the fitted map, its matrices zero.

    Raises:
      ValueError: one line, if M is not above K, the text is too short for its supports, or, unless
        `upscale.allow_unstable`, the lifted recurrence is not a contraction (naming layer, head and value).
    """
    size = upscale.size or 2 * model.config.head_size
    if size <= model.config.head_size:
        raise ValueError(f"size is {size}: the lifted key size M must be above the head size {model.config.head_size}")
    pick, fit_key = jax.random.split(key)
    recorded = jax.tree.map(jnp.asarray, host(correlations.record(model, params, batch)))
    streams = sample_tokens(recorded, jnp.asarray(batch["valid"]), upscale.tokens, pick)
    lifted = jax.tree.map(jnp.asarray, host(lift(model.config, streams, upscale, size, fit_key)))
    values = stability.worst(lifted, streams)
    if not upscale.allow_unstable:
        stability.require(values, f"{upscale.map} upscaling to {size}")
    return Fitted(zero_state(model.config, None)._replace(wkv=lifted), values)


def method(fitted: Fitted, tune: TuneConfig, upscale: Upscale) -> Method:
    """Returns upscaling as a method: it trains the matrices of the lifted state, zero at start.

    Args:
      fitted: what `fit` returned.
      tune: `alpha` scales what is trained; with `tune_shifts` the token-shift states are trained too.
      upscale: the settings given to `fit`; with `tune_base` S_0 is trained too.

    Returns:
      The method.
    """
    names = [name for name in TRAINED[upscale.map] if name != "s" or upscale.tune_base]
    where = [f"wkv/{name}" for name in names] + (["att_shift", "ffn_shift"] if tune.tune_shifts else [])

    def init() -> State:
        trainable, _ = surgery.split(fitted.state, where)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)

    def full(trainable: State) -> State:
        state = surgery.graft(surgery.scale(trainable, tune.alpha), fitted.state)
        return jax.tree.map(lambda leaf, start: leaf.astype(start.dtype), state, fitted.state)

    return Method(init, lambda trainable, batch_size: surgery.broadcast(full(trainable), batch_size), full)


@partial(jax.jit, static_argnums=(0, 2, 3))
def lift(config: RWKV7Config, streams: Streams, upscale: Upscale, size: int, key: Key[Array, ""]) -> PyTree:
    """Fits the map of `upscale` to given streams.

    Args:
      config: the model's dimensions.
      streams: what the model's recurrence reads on N calibration tokens, [L, N, H, K] each, see `sample_tokens`.
      upscale: which map, and how it is fitted.
      size: M, the lifted key size, above K.
      key: of the sampled supports.

    Returns:
      The unbatched `wkv` state, a state of `rwkv7_jax.wkv_state` with zero matrices.
    """
    layers, _, heads, value = streams.v.shape
    kernel = partial(feature_map.fit, key=key, supports=upscale.supports, bandwidth=upscale.bandwidth)
    x = Streams(*(jnp.swapaxes(z, 1, 2).astype(jnp.float32) for z in streams))
    s = jnp.zeros((layers, heads, value, config.head_size), jnp.float32)
    if upscale.map == "residual":
        extra = size - config.head_size
        return wkv_state.Residual(s, jnp.zeros((layers, heads, value, extra), jnp.float32), *kernel(x.r, extra))
    if upscale.map == "recurrent":
        directions = jnp.concatenate([_directions(x.kk), _directions(x.r)], axis=2)
        supports, gamma = kernel(directions, size)
        centre = _features(directions, supports, gamma).mean(2)
        s_ext, gate = jnp.zeros((layers, heads, value, size), jnp.float32), jnp.zeros((layers, heads), jnp.float32)
        return wkv_state.Recurrent(s, s_ext, gate, supports, gamma, centre)
    inputs = (x.r, jnp.exp(x.log_w), x.k, x.kk, x.iclr, x.v)
    kernels = [kernel(z, size) for z in inputs]
    supports, gamma = (jnp.stack(leaves, axis=2) for leaves in zip(*kernels, strict=True))
    out = _returning(_features(x.v, *kernels[-1]), x.v)
    return wkv_state.Literal(s, jnp.zeros((layers, heads, size, size), jnp.float32), supports, gamma, out)


def sample_tokens(streams: Streams, valid: Array, count: int, key: Key[Array, ""]) -> Streams:
    """Draws calibration tokens without replacement.

    Args:
      streams: of `dbp.record`, [L, B, T, H, K] each.
      valid: [B, T], False marks padding.
      count: N, tokens at most.
      key: of the choice.

    Returns:
      The streams of these tokens, [L, N, H, K] each.
    """
    places = jnp.flatnonzero(valid.reshape(-1))
    places = jax.random.permutation(key, places)[:count]
    return jax.tree.map(lambda z: z.reshape(z.shape[0], -1, *z.shape[3:])[:, places], streams)


def pad(x: Streams, size: int) -> Streams:
    """Lifts streams exactly, by E = [I; 0]: new key dimensions are zero, with decay 1, so that outputs stay the same.

    Args:
      x: streams [B, T, H, K].
      size: M, at least K.

    Returns:
      The streams with M key dimensions; v stays.

    Example:
      >>> x = Streams(*(jnp.ones((1, 2, 1, 4)) for _ in Streams._fields))
      >>> lifted = pad(x, 6)
      >>> lifted.r[0, 0, 0].tolist(), lifted.v.shape
      ([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], (1, 2, 1, 4))
    """
    extra = ((0, 0),) * 3 + ((0, size - x.r.shape[-1]),)
    lifted = {name: jnp.pad(getattr(x, name), extra) for name in ("r", "log_w", "k", "kk", "iclr")}
    return x._replace(**lifted)


def _directions(x: Float[Array, "L H N K"]) -> Float[Array, "L H N K"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _features(x: Float[Array, "L H N K"], supports: Array, gamma: Array) -> Float[Array, "L H N M"]:
    """psi of every point, layer and head by layer and head."""
    return jnp.swapaxes(wkv_state.gaussian(jnp.swapaxes(x, 1, 2), supports, gamma), 1, 2)


def _returning(features: Float[Array, "L H N M"], values: Float[Array, "L H N V"]) -> Float[Array, "L H V M"]:
    """Q, the ridge regression of v on phi(v): the nearest way back from features to values."""
    gram = jnp.einsum("lhnm,lhnp->lhmp", features, features, precision="highest")
    size = gram.shape[-1]
    ridge = 1e-4 * jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    gram = gram + ridge * jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)
    back = jnp.linalg.solve(gram, jnp.einsum("lhnm,lhnv->lhmv", features, values, precision="highest"))
    return jnp.swapaxes(back, -1, -2)
