"""Pytree surgery: a small algebra of pure functions on recurrent states.

A state here is unbatched: `State(att_shift [L,D], ffn_shift [L,D], wkv [L,H,V,K])`, float32. A *hole* is a leaf
replaced by `None`, as in equinox and optax masks: JAX sees an empty subtree, so a tree with holes is a valid pytree
that can be differentiated, optimised, mixed and scaled. Of an upscaled state only the matrices are mixed and scaled;
its map (`wkv_state.MAP`) stays as it is. All functions but `info` work under jit, vmap and grad.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rwkv7_jax.state import State
from rwkv7_jax.wkv_state import MAP, WKVState

Tree = TypeVar("Tree")
Factor = int | float | Float[Array, ""]
Where = str | Sequence[str] | Callable[[str], bool]


class FactoredState(NamedTuple):
    """A state whose wkv part is kept as a product of rank R: `wkv = u @ w`."""

    att_shift: Float[Array, "L D"]
    """As in `State`, and so is the next."""
    ffn_shift: Float[Array, "L D"]
    """Of the channel mix."""
    u: Float[Array, "L H V R"]
    """Left factors, value axis first."""
    w: Float[Array, "L H R K"]
    """Right factors, key axis last."""


def split(state: Tree, where: Where) -> tuple[Tree, Tree]:
    """Splits a state into a trainable and a frozen part, with complementary holes.

    Law: `graft(*split(x, where)) == x` for every `where`.

    Args:
      state: any pytree.
      where: path of a leaf, several, or a predicate on a path ("wkv"; "a/b" in a nested tree): what is trainable.

    Returns:
      (trainable, frozen), two trees of the structure of `state`.

    Raises:
      ValueError: a name is not the path of a leaf.

    Example:
      >>> split({"a": 1.0, "b": 2.0}, "a")
      ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    keep = _predicate(where, paths)
    trainable = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if keep(_path(path)) else None, state)
    frozen = jax.tree_util.tree_map_with_path(lambda path, leaf: None if keep(_path(path)) else leaf, state)
    return trainable, frozen


def graft(trainable: Tree, frozen: Tree) -> Tree:
    """Fills the holes of `trainable` from `frozen`.

    Laws: `graft(*split(x, where)) == x`; `graft(x, y) == x` if x has no hole.

    Args:
      trainable: a tree with holes; its leaves stay.
      frozen: a tree of the same structure.

    Returns:
      The tree.

    Raises:
      ValueError: the two trees have different structures.

    Example:
      >>> graft({"a": 1.0, "b": None}, {"a": 3.0, "b": 2.0})
      {'a': 1.0, 'b': 2.0}
    """
    return jax.tree.map(lambda mine, other: other if mine is None else mine, trainable, frozen, is_leaf=_is_hole)


def broadcast(state: Tree, batch_size: int) -> Tree:
    """Copies every leaf `[L, ...]` to `[L, B, ...]`: each of the B sequences starts from the same state.

    The result owns its memory: donating or changing it never touches `state`.
    Law: `broadcast(x, B)[:, i] == x` for every i, and the gradient to x is the sum over sequences.

    Args:
      state: unbatched.
      batch_size: B.

    Returns:
      The batched state.

    Example:
      >>> broadcast({"wkv": jnp.zeros((2, 3))}, 4)["wkv"].shape
      (2, 4, 3)
    """

    def rows(leaf: ArrayLike) -> Array:
        leaf = jnp.array(leaf)
        return jnp.broadcast_to(leaf[:, None], (leaf.shape[0], batch_size, *leaf.shape[1:]))

    return jax.tree.map(rows, state)


def mix(states: Sequence[Tree], weights: Sequence[Factor]) -> Tree:
    """Returns the weighted sum `sum_i weights[i] * states[i]` (State Soup, arXiv 2406.08423).

    Laws: `mix([x], [1]) == x`; `mix([x, y], [a, b]) == mix([y, x], [b, a])`; linear in every state.

    Args:
      states: of the same shapes.
      weights: one for each state; they need not sum to one.

    Returns:
      The sum.

    Raises:
      ValueError: there is no state, or not one weight a state, or shapes, or maps of upscaled states, differ.

    Example:
      >>> mix([jnp.ones(2), 3 * jnp.ones(2)], [0.5, 0.5]).tolist()
      [2.0, 2.0]
    """
    if not states or len(states) != len(weights):
        raise ValueError(f"mix: {len(states)} states with {len(weights)} weights; give one weight for each state")
    for index, other in enumerate(states[1:], 1):
        _check_same(states[0], other, f"mix: state {index}")
    terms = [scale(state, weight) for state, weight in zip(states, weights, strict=True)]
    return _but_for_maps(lambda *leaves: sum(leaves[1:], leaves[0]), *terms)


def diff(state: Tree, other: Tree) -> Tree:
    """Returns the leaf-wise difference `state - other`.

    Laws: `diff(x, x) == 0`; `diff(x, 0) == x`; `diff(x, y) == mix([x, y], [1, -1])`.

    Args:
      state: any state.
      other: a state of the same shapes.

    Returns:
      The difference.

    Raises:
      ValueError: shapes or the maps of upscaled states differ.
    """
    _check_same(state, other, "diff: the second state")
    return _but_for_maps(lambda x, y: jnp.asarray(x) - jnp.asarray(y), state, other)


def scale(state: Tree, alpha: Factor) -> Tree:
    """Multiplies every leaf by `alpha`, the strength of a tuned state (S0 Tuning, arXiv 2604.01168); dtypes stay.

    Laws: `scale(x, 1) == x`; `scale(x, 0) == 0` for finite x; `scale(scale(x, a), b) == scale(x, a * b)`.

    Args:
      state: any state.
      alpha: a number, or a scalar array.

    Returns:
      The scaled state.

    Example:
      >>> scale({"wkv": jnp.ones(2), "hole": None}, 0.5)["wkv"].tolist()
      [0.5, 0.5]
    """
    return _but_for_maps(lambda leaf: jnp.asarray(leaf) * jnp.asarray(alpha, jnp.asarray(leaf).dtype), state)


def select_layers(state: Tree, layers: Iterable[int]) -> Tree:
    """Keeps the given layers and sets the others to zero.

    Laws: selecting all layers changes nothing; `select_layers(x, A) + select_layers(x, not A) == x`; idempotent.

    Args:
      state: leaves [L, ...].
      layers: numbers of layers; negative ones count from the end.

    Returns:
      The state.

    Raises:
      ValueError: the state does not have such a layer.

    Example:
      >>> select_layers(jnp.ones((3, 2)), [-1]).tolist()
      [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    n_layer = jax.tree.leaves(state)[0].shape[0]
    keep = np.zeros(n_layer, bool)
    for layer in layers:
        if not -n_layer <= layer < n_layer:
            raise ValueError(f"select_layers: no layer {layer} in a state of {n_layer} layers (0 to {n_layer - 1})")
        keep[layer] = True

    def masked(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(masked, state)


def truncate_rank(state: State, rank: int) -> FactoredState:
    """Factors the nearest state of rank <= R in every head (Eckart and Young): `u = U sqrt(s)`, `w = sqrt(s) V^T`.

    Laws: `expand(truncate_rank(x, min(V, K))) == x` up to rounding; the squared error is the sum of the squared
    singular values left out; truncating again changes nothing.

    Args:
      state: unbatched.
      rank: R.

    Returns:
      The factors u [L, H, V, R] and w [L, H, R, K].

    Raises:
      ValueError: not 1 <= rank <= min(V, K), or the state is upscaled.
    """
    _check_plain(state, "truncate_rank")
    full = min(state.wkv.shape[-2:])
    if not 1 <= rank <= full:
        raise ValueError(f"truncate_rank: rank {rank} is not in 1..{full}, the ranks of a {state.wkv.shape[-2:]} head")
    left, singular, right = jnp.linalg.svd(jnp.asarray(state.wkv, jnp.float32), full_matrices=False)
    root = jnp.sqrt(singular[..., :rank])
    u = left[..., :rank] * root[..., None, :]
    w = root[..., :, None] * right[..., :rank, :]
    return FactoredState(jnp.asarray(state.att_shift), jnp.asarray(state.ffn_shift), u, w)


def expand(factored: FactoredState) -> State:
    """Returns the full state of a factored one: `wkv = u @ w` in float32. Law: see `truncate_rank`.

    Args:
      factored: of rank R.

    Returns:
      The unbatched state, its matrices [L, H, V, K] of rank at most R.
    """
    wkv = jnp.einsum("lhvr,lhrk->lhvk", factored.u, factored.w, precision="highest")
    return State(att_shift=factored.att_shift, ffn_shift=factored.ffn_shift, wkv=wkv)


def info(state: State) -> dict[str, np.ndarray]:
    """Measures a state on the host.

    Law: norms are absolutely homogeneous (`info(scale(x, a)) == |a| * info(x)`), the rank does not change.

    Args:
      state: unbatched.

    Returns:
      float64 [L] each: att_shift_norm, ffn_shift_norm, wkv_norm (Euclidean norms), wkv_max (the largest magnitude),
      wkv_rank (the largest stable rank `|S|_F^2 / |S|_2^2` of a head, between 1 and min(V, K); 0 for a zero layer).

    Raises:
      ValueError: the state is upscaled.
    """
    _check_plain(state, "info")
    wkv = np.asarray(state.wkv, np.float64)
    singular = np.linalg.svd(wkv, compute_uv=False)
    largest = np.square(singular).max(-1)
    rank = np.square(singular).sum(-1) / np.where(largest > 0, largest, 1.0)
    return {
        "att_shift_norm": _layer_norms(state.att_shift),
        "ffn_shift_norm": _layer_norms(state.ffn_shift),
        "wkv_norm": _layer_norms(wkv),
        "wkv_max": np.abs(wkv).max((1, 2, 3)),
        "wkv_rank": rank.max(-1),
    }


def size(state: PyTree) -> int:
    """Counts the values in a tree; holes count nothing. Law: additive over `split`.

    Args:
      state: any pytree of arrays.

    Returns:
      The sum of the leaves' sizes.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def _layer_norms(leaf: ArrayLike) -> np.ndarray:
    array = np.asarray(leaf, np.float64)
    return np.linalg.norm(array.reshape(array.shape[0], -1), axis=-1)


def _but_for_maps(function: Callable[..., ArrayLike], first: Tree, *others: Tree) -> Tree:
    """`function` on all leaves but those of maps, which are the first tree's."""

    def node(*nodes: PyTree) -> PyTree:
        if not _is_wkv_state(nodes[0]):
            return function(*nodes)
        fields = [name for name in nodes[0]._fields if name not in MAP]
        matrices = ([getattr(x, name) for name in fields] for x in nodes)
        return nodes[0]._replace(**dict(zip(fields, jax.tree.map(function, *matrices), strict=True)))

    return jax.tree.map(node, first, *others, is_leaf=_is_wkv_state)


def _is_wkv_state(node: object) -> bool:
    return isinstance(node, WKVState)


def _check_plain(state: State, what: str) -> None:
    if _is_wkv_state(state.wkv):
        raise ValueError(f"{what}: the state is upscaled; take one of its matrices, as state._replace(wkv=state.wkv.s)")


def _is_hole(leaf: object) -> bool:
    return leaf is None


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _predicate(where: Where, paths: list[str]) -> Callable[[str], bool]:
    if callable(where):
        return where
    names = (where,) if isinstance(where, str) else tuple(where)
    for name in names:
        if name not in paths:
            raise ValueError(f"split: no leaf {name!r} in the state; it has {', '.join(paths)}")
    return lambda path: path in names


def _check_same(state: PyTree, other: PyTree, what: str) -> None:
    if jax.tree.structure(state) != jax.tree.structure(other):
        raise ValueError(f"{what} has another structure than the first")
    for (path, mine), theirs in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(other), strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"{what} has {_path(path)} of shape {theirs.shape}, the first has {mine.shape}")
        traced = isinstance(mine, Tracer) or isinstance(theirs, Tracer)
        if _path(path).removeprefix("wkv/") in MAP and not traced and not np.array_equal(mine, theirs):
            raise ValueError(f"{what} has another map ({_path(path)}); states can be mixed only if they share it")
