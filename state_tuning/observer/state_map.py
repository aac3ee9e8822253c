"""Linear maps from one model's states to another's, factored, fitted by alternating least squares.

Head h of target layer l is read off all heads j of one source layer:

    S[l, h] ~= sum_p U[l, h, p] S^[source_l, p mod H^] W[l, h, p]^T,      p = 1 .. terms * H^.

A full matrix between states would have (H V K)^2 entries. For fixed W the best U is a ridge regression in closed form,
and for fixed U the best W: alternating between them needs no step size and never raises the error (but for the ridge),
so it is preferred to gradient steps wherever the maps alone are fitted.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.state import State, zero_state


class Maps(NamedTuple):
    """Factors of the maps to L target layers with H heads; lower case sizes and layers are the source model's."""

    source: Int[Array | np.ndarray, "L"]
    """Which source layer each target layer is read off."""
    u: Float[Array, "L H P V v"]
    w: Float[Array, "L H P K k"]


def paired_layers(sources: int, targets: int) -> list[int]:
    """Returns the source layer at the same relative depth as each target layer."""
    return [round(i * (sources - 1) / max(targets - 1, 1)) for i in range(targets)]


def apply(maps: Maps, s: Float[Array, "l *B h v k"]) -> Float[Array, "L *B H V K"]:
    """Returns the target model's matrices as the map has them. Linear: zero goes to zero."""
    x = jnp.asarray(s)[jnp.asarray(maps.source)]
    rows = x.shape[1:-3]
    x = x.reshape(x.shape[0], -1, *x.shape[-3:])
    x = jnp.tile(x, (1, 1, maps.u.shape[2] // x.shape[2], 1, 1))
    out = jax.lax.map(lambda layer: _one_layer(*layer), (maps.u, maps.w, x))
    return out.reshape(out.shape[0], *rows, *out.shape[-3:])


def transfer(maps: Maps, state: State, config: RWKV7Config) -> State:
    """Maps an unbatched state of the source model to one of the target model `config`.

    Only the plain matrices S_0 travel: token-shift states of another width have no meaning there and are zero.

    Args:
      maps: from the source model's states to the target model's.
      state: unbatched.
      config: the target model's dimensions.

    Returns:
      The unbatched state of the target model.

    Raises:
      ValueError: the maps lead to another model.
    """
    wkv = apply(maps, getattr(state.wkv, "s", state.wkv))
    zero = zero_state(config, None)
    if wkv.shape != zero.wkv.shape:
        raise ValueError(f"transfer: the maps give matrices {wkv.shape}, the target model has {zero.wkv.shape}")
    return zero._replace(wkv=wkv)


def fit(
    source: Float[Array, "N l h v k"],
    target: Float[Array, "N L H V K"],
    key: Key[Array, ""],
    *,
    pairs: Sequence[int] | None = None,
    terms: int = 1,
    iterations: int = 20,
    ridge: float = 1e-5,
) -> Maps:
    """Fits maps that minimise `sum |P S^ - S|^2` over N samples, for each target layer and head apart.

    As heads are apart, dividing by |S_l|^2 layer by layer would change nothing.

    Args:
      source: states of one model.
      target: states of the other at the same tokens.
      key: of the random start.
      pairs: the source layer of each target layer; None: `paired_layers`.
      terms: factor pairs for each pair of heads.
      iterations: rounds of alternating least squares.
      ridge: relative to the mean eigenvalue.

    Returns:
      The maps.

    Raises:
      ValueError: the numbers of samples differ, or `pairs` do not fit.
    """
    if source.shape[0] != target.shape[0]:
        raise ValueError(f"fit: {source.shape[0]} states of one model, {target.shape[0]} of the other")
    layers = paired_layers(source.shape[1], target.shape[1]) if pairs is None else list(pairs)
    if len(layers) != target.shape[1] or not all(0 <= i < source.shape[1] for i in layers):
        raise ValueError(f"fit: pairs {layers} must name a source layer 0..{source.shape[1] - 1} for each target layer")
    x = jnp.tile(jnp.moveaxis(source, 1, 0), (1, 1, terms, 1, 1))[np.asarray(layers)]
    y = jnp.moveaxis(target, (1, 2), (0, 1))
    keys = jax.random.split(key, target.shape[1:3])
    u, w = _fit_all(x, y, keys, ridge, iterations=iterations)
    return Maps(np.asarray(layers, np.int32), u, w)


def r_squared(predicted: Float[Array, "L N *S"], target: Float[Array, "L N *S"]) -> Float[np.ndarray, "L"]:
    """Returns 1 - sum |predicted - S|^2 / sum |S - mean S|^2 of each layer, in float64 on the host; N >= 1."""
    x, y = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    axes = tuple(range(1, x.ndim))
    spread = np.square(y - y.mean(1, keepdims=True)).sum(axes)
    return 1.0 - np.square(x - y).sum(axes) / np.maximum(spread, np.finfo(np.float64).tiny)


def _one_layer(
    u: Float[Array, "H P V v"], w: Float[Array, "H P K k"], x: Float[Array, "B P v k"]
) -> Float[Array, "B H V K"]:
    half = jnp.einsum("hpVv,bpvk->bhpVk", u, x, precision="highest")
    return jnp.einsum("bhpVk,hpKk->bhVK", half, w, precision="highest")


@partial(jax.jit, static_argnames="iterations")
def _fit_all(x: Array, y: Array, keys: Array, ridge: ArrayLike, *, iterations: int) -> tuple[Array, Array]:
    """Head by head, so that products of all samples exist for one head at a time."""

    def layer(args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x, y, keys = args
        return jax.lax.map(lambda head: _fit_head(x, head[0], head[1], ridge, iterations), (y, keys))

    return jax.lax.map(layer, (x, y, keys))


def _fit_head(
    x: Float[Array, "N P v k"], y: Float[Array, "N V K"], key: Array, ridge: ArrayLike, iterations: int
) -> tuple[Array, Array]:
    """(U [P, V, v], W [P, K, k]) by alternation, from random W."""
    terms, size = x.shape[1], x.shape[3]
    w = jax.random.normal(key, (terms, y.shape[2], size)) * size**-0.5
    flipped, target = jnp.swapaxes(x, 2, 3), jnp.swapaxes(y, 1, 2)

    def step(w: Array, _: None) -> tuple[Array, None]:
        u = _regress(x, w, y, ridge)
        return _regress(flipped, u, target, ridge), None

    w = jax.lax.scan(step, w, None, length=iterations)[0]
    return _regress(x, w, y, ridge), w


def _regress(x: Float[Array, "N P v k"], w: Float[Array, "P K k"], y: Float[Array, "N V K"], ridge: ArrayLike) -> Array:
    """U [P, V, v] of the ridge regression `y ~= sum_p U_p x_p W_p^T`."""
    features = jnp.einsum("npvk,pKk->npvK", x, w, precision="highest")
    count, terms, inner, width = features.shape
    f = features.reshape(count, terms * inner, width)
    gram = jnp.einsum("nfK,ngK->fg", f, f, precision="highest")
    damping = ridge * jnp.trace(gram) / gram.shape[0] + jnp.finfo(jnp.float32).tiny
    gram = gram + damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    right = jnp.einsum("nfK,nVK->fV", f, y, precision="highest")
    u = jax.scipy.linalg.solve(gram, right, assume_a="pos")
    return jnp.moveaxis(u.reshape(terms, inner, -1), 2, 1)
