"""Decay factors of a chunk for log_w down to -20, level by level; see `pallas_kernels.chunked.levels`.

Pairs of tokens within 4 rows are scaled to the second of them, which keeps factors within e^40 and covers s = t. The
other levels join the halves of blocks of 8, 16, 32 and 64 rows at their boundary, where no factor exceeds 1. A pair
belongs to the smallest block that holds both tokens. All exponents are one product with a matrix of 1, 0 and -1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.tpu.packing import CHUNK, LANES, Masks, iota, keep, matrix_sums, rounded, row_sums
from pallas_kernels.tpu.stages import halves, limited, stacked

BLOCKS = (4, 8, 16, 32, 64)
"""Rows of the blocks of each level."""


class Spans(NamedTuple):
    """What all packs of a program share.

    matrix: [7C, C or 2C], from log_w to the exponents of all levels, then from the start of the chunk and to its end.
    blocks: rows and lanes of one block, [C, pack * C], for each level but the last, whose block is the chunk.
    """

    matrix: Array
    blocks: tuple[Array, ...]


class Factors(NamedTuple):
    """Of one level, [C, 128] float32: for r, a, and b and k; 0 in rows that it does not join."""

    r: Array
    a: Array
    bk: Array


class Ends(NamedTuple):
    """enter: for [a; r], from the start of the chunk; leave: for b and k, to its end; whole: from one to the other."""

    enter: Array
    leave: Array
    whole: Array


def make_spans(pack: int, operand: np.dtype) -> Spans:
    """The matrix of exponents and the blocks of the levels."""
    shape = (CHUNK, CHUNK if operand == jnp.float32 else 2 * CHUNK)
    row, column = iota(shape, 0), iota(shape, 1) & (CHUNK - 1)
    upto, after = column <= row, column > row
    parts = []
    for size in BLOCKS:
        boundary = (row & -size) + (1 if size == BLOCKS[0] else size // 2 - 1)
        up, down = (mask.astype(jnp.float32) for mask in (upto & (column > boundary), after & (column <= boundary)))
        parts.append(up - down if size == BLOCKS[0] else up + down)
    matrix = jnp.concatenate([*parts, upto.astype(jnp.float32), after.astype(jnp.float32)], 0)
    row, lane = (iota((CHUNK, pack * CHUNK), axis) for axis in (0, 1))
    return Spans(matrix, tuple(((row ^ lane) & (CHUNK - size)) == 0 for size in BLOCKS[:-1]))


@partial(jax.jit, static_argnames="operand")
def exponents(log_w: Array, matrix: Array, operand: np.dtype) -> Array:
    """Sums of log_w [C, 128] as the rows of the matrix name them, [7C, 128]."""
    return matrix_sums(matrix, log_w, operand)


@partial(jax.jit, static_argnames="level")
def factors(sums: Array, log_w: Array, level: int) -> Factors:
    """The factors of a level, from all exponents."""
    here = sums[level * CHUNK : (level + 1) * CHUNK]
    if level == 0:
        return Factors(jnp.exp(here), jnp.exp(here - log_w), jnp.exp(-here))
    second = (iota((CHUNK, LANES), 0) & (BLOCKS[level] // 2)) != 0
    grown = jnp.exp(here)
    return Factors(keep(second, grown), keep(second, jnp.exp(here - log_w)), keep(~second, grown))


@jax.jit
def ends(sums: Array, log_w: Array, masks: Masks) -> Ends:
    """The factors of what passes through states, under the masks of resets."""
    start, end = halves(sums[len(BLOCKS) * CHUNK :])
    return Ends(
        enter=limited(masks.head, stacked(jnp.exp(start - log_w), jnp.exp(start))),
        leave=limited(masks.tail, jnp.exp(end)),
        whole=keep(masks.keep, jnp.exp(start[CHUNK - 1 :])),
    )


@partial(jax.jit, static_argnames="operand")
def through(x: Array, gradient: Array, operand: np.dtype) -> Array:
    """What operands, as products round them, and their gradients give to the gradient of the exponents."""
    return rounded(x, operand) * gradient


@jax.jit
def decay_gradient(loads: Array, stores: Array, total: Array) -> Array:
    """d log_w from `through` of [a; r] and of [b; k]; total: what passes by all rows or leaves the chunk, [1, 128]."""
    (through_a, through_r), (through_b, through_k) = halves(loads), halves(stores)
    return row_sums(through_r + through_a - through_b - through_k, reverse=True) - through_a + total
