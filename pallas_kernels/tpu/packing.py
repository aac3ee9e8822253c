"""How heads lie in the vector registers of a TPU, and the few operations that keep them apart.

A register has 128 lanes. With heads of N = 64 a *pack* is two heads side by side, with N = 128 one; LANES = pack * N.
Every array of a chunk is [C, 128] with lanes (head, n) or, for scores, [C, pack * C] with lanes (head, s). A product
that must not mix the heads takes one operand block-diagonal, [pack * rows, 128]: the matrix unit is 128 x 128 wide, so
the zeros cost nothing. Since C = 64 = N wherever there are two heads, tokens, states and scores share one block mask.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 8
CHUNK = 64

NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def dot(x: Array, y: Array, operand, dimensions=NN) -> Array:
    """Matrix product of float32 arrays rounded to `operand`, with float32 accumulation; exact for float32.

    The one place where anything is rounded: on a chip without bfloat16 arithmetic, an operand that nothing but products
    use is packed in one instruction, any other one has to be laid out anew.
    """
    precision = lax.Precision.HIGHEST if operand == jnp.float32 else None
    x, y = x.astype(operand), y.astype(operand)
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def rounded(x: Array, operand) -> Array:
    """float32 x as `operand` has it (halves up, by its bits: a detour over the type itself would change its layout)."""
    if operand == jnp.float32:
        return x
    bits = lax.bitcast_convert_type(x, jnp.int32) + jnp.int32(0x8000)
    return lax.bitcast_convert_type(bits & jnp.int32(-0x10000), jnp.float32)


def iota(shape: tuple[int, ...], axis: int) -> Array:
    """Returns the index along `axis`, int32."""
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def keep(mask: Array | None, x: Array) -> Array:
    """x where mask, else 0; all of x without a mask."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def blocks(x: Array, pack: int) -> Array:
    """[C, 128] -> [pack * C, 128] with the lanes of head h only in its rows h * C ..."""
    if pack == 1:
        return x
    first = iota(x.shape, 1) < LANES // 2
    return jnp.concatenate([keep(first, x), keep(~first, x)], 0)


def fold(x: Array, pack: int) -> Array:
    """[pack * C, 128] -> [C, 128]: the diagonal blocks, where a product has mixed the heads."""
    if pack == 1:
        return x
    half = x.shape[0] // 2
    return jnp.where(iota((half, LANES), 1) < LANES // 2, x[:half], x[half:])


class Masks(NamedTuple):
    """Which token sees which, the same for all packs of a program.

    earlier, upto: [C, pack * C], s < t and s <= t, rows t and lanes (head, s), within one segment between resets;
    later, since: their transposes, rows s and lanes (head, t).
    head, tail: [C, 1], tokens before the first reset and from the last one on; keep: [1, 1], no reset. None without.
    """

    earlier: Array
    upto: Array
    later: Array
    since: Array
    head: Array | None
    tail: Array | None
    keep: Array | None


def make_masks(segment: Array | None, pack: int) -> Masks:
    """Masks of a chunk. segment: number of resets so far, float32 [1, pack * C], the same for every head, or None."""
    row, lane = (iota((CHUNK, pack * CHUNK), axis) for axis in (0, 1))
    column = lane & (CHUNK - 1)
    masks = [column < row, column <= row, column > row, column >= row]
    ends: list[Array | None] = [None, None, None]
    if segment is not None:
        here = jnp.sum(keep(row == lane, jnp.broadcast_to(segment, row.shape)), 1, keepdims=True)
        last = segment[:, CHUNK - 1 : CHUNK]
        same = here == segment
        masks = [mask & same for mask in masks]
        ends = [here == 0, here == last, last == 0]
    return Masks(*masks, *ends)


def matrix_sums(matrix: Array, x: Array, operand) -> Array:
    """matrix @ x, exact to float32: in bfloat16 as the sum of a high and a low part, side by side in one product."""
    if operand == jnp.float32:
        return dot(matrix, x, operand)
    high = rounded(x, operand)
    return dot(matrix, jnp.concatenate([high, x - high], 0), operand)


def row_sums(x: Array, *, reverse: bool = False) -> Array:
    """Inclusive cumulative sums over the rows (`reverse`: from the last row up), on the vector units.

    Within registers of 8 rows, then over registers: the matrix units have more to do.
    """
    shape = (x.shape[0] // SUBLANES, SUBLANES, x.shape[1])
    row, parts = lax.broadcasted_iota(jnp.int32, shape, 1), x.reshape(shape)
    for step in (1, 2, 4):
        seen = row < SUBLANES - step if reverse else row >= step
        parts += keep(seen, pltpu.roll(parts, SUBLANES - step if reverse else step, 1))
    end, sums = (0, []) if reverse else (SUBLANES - 1, [])
    for i in range(shape[0])[:: -1 if reverse else 1]:
        sums.append(parts[i] + sums[-1][end : end + 1] if sums else parts[i])
    return jnp.concatenate(sums[::-1] if reverse else sums, 0)
