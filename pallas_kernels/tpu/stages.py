"""The mathematics of one chunk of one pack in stages: all that lies between two products, and the product.

Every stage is traced once, whatever the number of packs and kernels. Notation as in `pallas_kernels.chunked.math`:
r, k, a and b are scaled to the middle of the chunk, and that is all that products see of them; the factors `enter`
(start to middle) and `leave` (middle to end) are put on states. Arrays are float32; `operand` is what products round
them to.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.tpu.packing import CHUNK, LANES, NT, TN, Masks, blocks, dot, fold, keep, rounded, row_sums

Result = TypeVar("Result")


def stage(function: Callable[..., Result]) -> Callable[..., Result]:
    """Trace the function once per shape and setting, not once per call."""
    static = {"pack", "operand"} & set(inspect.signature(function).parameters)
    return jax.jit(function, static_argnames=tuple(static))


class Decays(NamedTuple):
    """Factors relative to the middle of the chunk, [C, 128] float32; enter, leave, whole: [1, 128]."""

    r: Array
    a: Array
    bk: Array
    enter: Array
    leave: Array
    whole: Array


@stage
def decays(log_w: Array, masks: Masks) -> Decays:
    """Decay factors of a chunk. `whole` is that of the state over the chunk, 0 where a reset cuts it."""
    sums = row_sums(log_w)
    middle, end = sums[CHUNK // 2 - 1 : CHUNK // 2], sums[CHUNK - 1 :]
    exponent = sums - middle
    return Decays(
        r=jnp.exp(exponent),
        a=jnp.exp(exponent - log_w),
        bk=jnp.exp(-exponent),
        enter=jnp.exp(middle),
        leave=jnp.exp(end - middle),
        whole=keep(masks.keep, jnp.exp(end)),
    )


def halves(x: Array) -> tuple[Array, Array]:
    """The upper and the lower half of the rows."""
    return x[: x.shape[0] // 2], x[x.shape[0] // 2 :]


def stacked(first: Array, second: Array) -> Array:
    """One above the other: [2C, .]."""
    return jnp.concatenate([first, second], 0)


def limited(mask: Array | None, x: Array) -> Array:
    """x [C or 2C, .] where mask [C, 1], else 0, in both halves."""
    if mask is None:
        return x
    return keep(mask if x.shape[0] == CHUNK else jnp.concatenate([mask, mask], 0), x)


@stage
def scores(
    rows: Array, first: Array, second: Array, masks: tuple[tuple[Array, Array], ...], pack: int, operand
) -> tuple[list[Array], list[Array]]:
    """rows [n * C, 128] times first^T and second^T [128, C] by head: for each of both n parts [C, pack * C].

    masks: of each part, for `first` and `second`. One product of 256 lanes.
    """
    width = pack * CHUNK
    found = dot(rows, jnp.concatenate([blocks(first, pack), blocks(second, pack)], 0), operand, NT)
    parts = [found[i * CHUNK : (i + 1) * CHUNK] for i in range(len(masks))]
    to_first = [keep(pair[0], part[:, :width]) for part, pair in zip(parts, masks, strict=True)]
    to_second = [keep(pair[1], part[:, width:]) for part, pair in zip(parts, masks, strict=True)]
    return to_first, to_second


@stage
def product(scores: Array, x: Array, pack: int, operand) -> Array:
    """scores [., pack * C] @ x [C, 128], by head."""
    return dot(scores, blocks(x, pack), operand)


@stage
def two_products(first: Array, x: Array, second: Array, y: Array, pack: int, operand) -> Array:
    """first x + second y, by head, as one product over 256 lanes."""
    both = jnp.concatenate([blocks(x, pack), blocks(y, pack)], 0)
    return dot(jnp.concatenate([first, second], 1), both, operand)


@stage
def transposed_products(first: Array, second: Array, x: Array, pack: int, operand) -> Array:
    """first^T x above second^T x, by head: [2C, pack * C] each and [2C, 128] -> [2C, 128]."""
    upper, lower = halves(dot(jnp.concatenate([first, second], 1), x, operand, TN))
    return stacked(fold(upper, pack), fold(lower, pack))


@stage
def keys_to_values(keys: Array, state: Array, mask: Array | None, pack: int, operand) -> Array:
    """keys state^T, of the rows in `mask` only; state [V, 128]."""
    return limited(mask, dot(keys, blocks(state, pack), operand, NT))


@stage
def through_state(keys: Array, state: Array, mask: Array | None, scores: Array, x: Array, pack: int, operand) -> Array:
    """`keys_to_values` + `product`, as one product over 256 lanes: half the operands to load, for transposing x."""
    both = jnp.concatenate([blocks(state, pack), blocks(x, pack).T], 1)
    return dot(jnp.concatenate([limited(mask, keys), scores], 1), both, operand, NT)


@stage
def values_to_keys(values: Array, state: Array, mask: Array | None, pack: int, operand) -> Array:
    """values state, of the rows in `mask` only."""
    return limited(mask, dot(values, blocks(state, pack), operand))


@stage
def by_rows(x: Array, pack: int) -> Array:
    """x [1, 128], lanes (head, key), as a factor of states [K, 128] with lanes (head, value)."""
    return fold(jnp.broadcast_to(x, (LANES, LANES)).T, pack)


@stage
def outer(values: Array, keys: Array, mask: Array | None, pack: int, operand) -> Array:
    """values^T keys, by head, of the rows in `mask` only: a change of the state, [V, 128]."""
    return fold(dot(limited(mask, values), keys, operand, TN), pack)


@stage
def decay_gradient(g_ar: Array, g_bk: Array, leaving: Array, ar: Array, bk: Array, carried: Array, operand):
    """d log_w. g_: gradients of the operands [a; r] and [b; k]; leaving: the part of g_bk through the state.

    carried: what the state that passes through adds to all rows, [1, 128]. Made of the operands as the products saw
    them, so that what pairs of tokens add cancels exactly.
    """
    keys = rounded(bk, operand)
    through_a, through_r = halves(rounded(ar, operand) * g_ar)
    through_b, through_k = halves(keys * g_bk)
    sums = row_sums(through_r + through_a - through_b - through_k, reverse=True)
    return sums - through_a + (carried + jnp.sum(keys * leaving, 0, keepdims=True))
