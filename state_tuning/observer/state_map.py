"""Maps from one model's states to another's, factored, fitted by alternating least squares.

Head h of target layer l is read off all heads j of one source layer, or of several:

    S[l, h] ~= b[l, h] + sum_p U[l, h, p] S^[p mod P] W[l, h, p]^T,      p = 1 .. terms * P,

S^[1 .. P] being the heads of the source layers. They are linear but for two options: a constant b, and beside each head
a second one whose entries saturate, c tanh(S^ / c) with c their root mean square. Zero then still goes to b alone.

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
from state_tuning.core.non_finite import all_finite

__all__ = ["Maps", "apply", "factors", "fit", "paired_layers", "r_squared", "transfer", "widened"]


class Maps(NamedTuple):
    """Factors of the maps to L target layers with H heads; lower case sizes and layers are the source model's."""

    source: Int[Array | np.ndarray, "L *N"]
    """Which source layer, or layers, each target layer is read off."""
    u: Float[Array, "L H P V v"]
    """Left factors, of values, for each of P source heads and terms."""
    w: Float[Array, "L H P K k"]
    """Right factors, of keys."""
    bias: Float[Array, "L H V K"] | None = None
    """The constant b; None: there is none."""
    scale: Float[Array, "l h"] | None = None
    """Of entries that saturate; None: none do."""


def paired_layers(sources: int, targets: int) -> list[int]:
    """Pairs layers by depth.

    Args:
      sources: layers of the source model.
      targets: layers of the target model.

    Returns:
      The source layer at the same relative depth as each target layer.

    Example:
      >>> paired_layers(3, 5)
      [0, 0, 1, 2, 2]
    """
    return [round(i * (sources - 1) / max(targets - 1, 1)) for i in range(targets)]


def factors(maps: Maps) -> dict[str, Array]:
    """Returns what can be trained of the maps.

    Args:
      maps: any maps.

    Returns:
      `u`, `w` and, if there is one, `bias`, by name; `maps._replace(**factors(maps))` is `maps`.
    """
    return {name: leaf for name in ("u", "w", "bias") if (leaf := getattr(maps, name)) is not None}


def apply(maps: Maps, s: Float[Array, "l *B h v k"], *, difference: bool = False) -> Float[Array, "L *B H V K"]:
    """Computes the target model's matrices as the maps have them.

    Args:
      maps: the maps.
      s: the source model's matrices, batched or not.
      difference: whether `s` is a difference of states, as a tuned state is one from zero: the constant is left out.

    Returns:
      P S^ [L, *B, H, V, K].
    """
    x = jnp.asarray(s)
    rows = x.shape[1:-3]
    x = _features(x.reshape(x.shape[0], -1, *x.shape[-3:]), maps.scale)
    sources = jnp.asarray(maps.source).reshape(len(maps.source), -1)
    out = jax.lax.map(lambda layer: _one_layer(layer[0], layer[1], _heads(x, layer[2])), (maps.u, maps.w, sources))
    if maps.bias is not None and not difference:
        out = out + maps.bias[:, None]
    return out.reshape(out.shape[0], *rows, *out.shape[-3:])


def widened(maps: Maps, sources: int, heads: int, key: Key[Array, ""]) -> Maps:
    """Returns maps that read all layers of the source model and give what `maps`, which read one, give.

    The new terms have W at random and U zero, so that both can be trained.

    Args:
      maps: each target layer reads one source layer.
      sources: layers of the source model.
      heads: its heads; with saturating ones, twice as many.
      key: of the new W.

    Returns:
      The wider maps.
    """
    own, (layers, targets, terms) = np.asarray(maps.source).reshape(-1), maps.u.shape[:3]
    order = np.stack([[i, *(j for j in range(sources) if j != i)] for i in own]).astype(np.int32)
    shape = (layers, targets, terms // heads, heads * (sources - 1))

    def joined(leaf: Array, new: Array) -> Array:
        old = leaf.reshape(*shape[:3], heads, *leaf.shape[3:])
        return jnp.concatenate([old, new], axis=3).reshape(layers, targets, -1, *leaf.shape[3:])

    w = jax.random.normal(key, (*shape, *maps.w.shape[3:])) * maps.w.shape[-1] ** -0.5
    return maps._replace(source=order, u=joined(maps.u, jnp.zeros((*shape, *maps.u.shape[3:]))), w=joined(maps.w, w))


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
    wkv = apply(maps, getattr(state.wkv, "s", state.wkv), difference=True)
    zero = zero_state(config, None)
    if wkv.shape != zero.wkv.shape:
        raise ValueError(f"transfer: the maps give matrices {wkv.shape}, the target model has {zero.wkv.shape}")
    return zero._replace(wkv=wkv)


def fit(
    source: Float[Array, "N l h v k"],
    target: Float[Array, "N L H V K"],
    key: Key[Array, ""],
    *,
    pairs: Sequence[int] | Sequence[Sequence[int]] | None = None,
    terms: int = 1,
    iterations: int = 20,
    ridge: float = 1e-5,
    bias: bool = False,
    saturating: bool = False,
) -> Maps:
    """Fits maps that minimise `sum |P S^ - S|^2` over N samples, for each target layer and head apart.

    As heads are apart, dividing by |S_l|^2 layer by layer would change nothing.

    Args:
      source: states of one model.
      target: states of the other at the same tokens.
      key: of the random start.
      pairs: the source layer, or as many layers, of each target layer; None: `paired_layers`.
      terms: factor pairs for each pair of heads.
      iterations: rounds of alternating least squares.
      ridge: relative to the mean eigenvalue; at least what rounding moves the eigenvalues by.
      bias: whether a constant is fitted too.
      saturating: whether each head is there a second time with entries that saturate.

    Returns:
      The maps.

    Raises:
      ValueError: the numbers of samples differ, `pairs` do not fit, or states are not finite.
    """
    if source.shape[0] != target.shape[0]:
        raise ValueError(f"fit: {source.shape[0]} states of one model, {target.shape[0]} of the other")
    layers = np.asarray(paired_layers(source.shape[1], target.shape[1]) if pairs is None else pairs, np.int32)
    if len(layers) != target.shape[1] or layers.size == 0 or layers.min() < 0 or layers.max() >= source.shape[1]:
        names = f"fit: pairs {layers.tolist()} must name a source layer 0..{source.shape[1] - 1}"
        raise ValueError(f"{names} for each target layer")
    x, y = jnp.moveaxis(source, 1, 0), jnp.moveaxis(target, (1, 2), (0, 1))
    scale = jnp.sqrt(jnp.maximum(jnp.square(x).mean((1, 3, 4)), 1e-30)) if saturating else None
    x = _features(x, scale)
    keys = jax.random.split(key, target.shape[1:3])
    options = {"terms": terms, "iterations": iterations, "bias": bias}
    u, w, constant = _fit_all(x, jnp.asarray(layers.reshape(len(layers), -1)), y, keys, ridge, **options)
    if not all_finite((u, w)):
        raise ValueError("fit: the maps are not finite; look for NaN or infinite numbers in the states")
    return Maps(layers, u, w, constant if bias else None, scale)


def r_squared(predicted: Float[Array, "L N *S"], target: Float[Array, "L N *S"]) -> Float[np.ndarray, "L"]:
    """Computes 1 - sum |predicted - S|^2 / sum |S - mean S|^2 of each layer, the mean over its N samples.

    Args:
      predicted: what the maps give, N >= 1.
      target: S.

    Returns:
      R^2 [L], float64 on the host: 1 is exact, 0 what the mean alone would give.

    Example:
      >>> target = jnp.array([[1.0, 2.0, 3.0]])
      >>> r_squared(target, target).tolist(), r_squared(jnp.full((1, 3), 2.0), target).tolist()
      ([1.0], [0.0])
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    axes = tuple(range(1, x.ndim))
    spread = np.square(y - y.mean(1, keepdims=True)).sum(axes)
    return 1.0 - np.square(x - y).sum(axes) / np.maximum(spread, np.finfo(np.float64).tiny)


def _one_layer(
    u: Float[Array, "H P V v"], w: Float[Array, "H P K k"], x: Float[Array, "B h v k"]
) -> Float[Array, "B H V K"]:
    x = jnp.tile(x, (1, u.shape[1] // x.shape[1], 1, 1))
    half = jnp.einsum("hpVv,bpvk->bhpVk", u, x, precision="highest")
    return jnp.einsum("bhpVk,hpKk->bhVK", half, w, precision="highest")


def _features(x: Float[Array, "l N h v k"], scale: Float[Array, "l h"] | None) -> Float[Array, "l N g v k"]:
    """The heads, and where there is a scale each a second time with saturating entries."""
    if scale is None:
        return x
    wide = scale[:, None, :, None, None]
    return jnp.concatenate([x, wide * jnp.tanh(x / wide)], axis=2)


def _heads(x: Float[Array, "l N h v k"], layers: Int[Array, "M"]) -> Float[Array, "N P v k"]:
    """The heads of some layers side by side."""
    chosen = jnp.moveaxis(x[layers], 0, 1)
    return chosen.reshape(chosen.shape[0], -1, *chosen.shape[3:])


@partial(jax.jit, static_argnames=("terms", "iterations", "bias"))
def _fit_all(
    x: Array, layers: Array, y: Array, keys: Array, ridge: ArrayLike, *, terms: int, iterations: int, bias: bool
) -> tuple[Array, Array, Array]:
    """Head by head, so that products of all samples exist for one head at a time."""

    def layer(args: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        sources, y, keys = args
        heads = jnp.tile(_heads(x, sources), (1, terms, 1, 1))
        centre = heads.mean(0, keepdims=True) if bias else jnp.zeros_like(heads[:1])

        def head(args: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            own, key = args
            middle = own.mean(0, keepdims=True) if bias else jnp.zeros_like(own[:1])
            u, w = _fit_head(heads - centre, own - middle, key, ridge, iterations)
            return u, w, (middle - _one_layer(u[None], w[None], centre)[:, 0])[0]

        return jax.lax.map(head, (y, keys))

    return jax.lax.map(layer, (layers, y, keys))


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
    # Rounding moves eigenvalues by eps times the largest, which the Frobenius norm bounds.
    rounding = 4 * jnp.finfo(gram.dtype).eps * jnp.linalg.norm(gram)
    damping = jnp.maximum(ridge * jnp.trace(gram) / gram.shape[0], rounding) + jnp.finfo(gram.dtype).tiny
    gram = gram + damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    right = jnp.einsum("nfK,nVK->fV", f, y, precision="highest")
    u = jax.scipy.linalg.solve(gram, right, assume_a="pos")
    return jnp.moveaxis(u.reshape(terms, inner, -1), 2, 1)
