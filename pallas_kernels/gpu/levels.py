"""Decay factors of a chunk for log_w down to -20, level by level, as tiles of a GPU program; see `chunked.levels`.

At level l a pair of tokens s < t of one block of 2^(l+1) rows has s in its first half and t in its second. r and a of
second halves and b and k of first ones are scaled to the boundary between, which no factor makes larger. What is
computed of other pairs is finite and masked. Sums of log_w are products with matrices of ones, exact to float32.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.gpu.chunk import Numerics, make_masks, make_segments, where
from pallas_kernels.gpu.parallel import indices
from pallas_kernels.gpu.tiles import GridIndex

Sums: TypeAlias = tuple[Array, ...]
"""What is added up over the levels."""


def pairs(size: int, level: int | Array) -> Array:
    """Bool [C, C]: the pairs of a row that reads and a column that is read which part at this level."""
    row, col = indices(size)
    return (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)


def between(size: int, level: int | Array, *, transposed: bool = False) -> Array:
    """Float32 [C, C] of ones: the tokens (columns) that decay what lies between a row and the boundary of its halves.

    Up to the row itself in second halves, after it in first ones.
    """
    row, col = indices(size)[:: -1 if transposed else 1]
    upto, after = (col <= row).astype(jnp.float32), (col > row).astype(jnp.float32)
    return where(row >> level == col >> level, jnp.where((row >> level) & 1 == 1, upto, after))


def before(size: int, level: int | Array, *, transposed: bool = False) -> Array:
    """As `between` for a, which reads before its own token decays the state; of second halves alone."""
    row, col = indices(size)[:: -1 if transposed else 1]
    return where(row >> level == col >> level, (col < row).astype(jnp.float32))


def weighted(n: Numerics, weights: Array, x: Array) -> Array:
    """weights x, float32, for weights that bfloat16 holds: x in the bfloat16 parts that its precision asks for.

    One for bfloat16, two of a float32 beside bfloat16 products, three beside float32 ones.
    """
    half = n._replace(operand=jnp.dtype(jnp.bfloat16))
    parts = 1 if x.dtype == jnp.bfloat16 else 2 if n.operand == jnp.bfloat16 else 3
    total = half.mm(weights, x)
    for _ in range(parts - 1):
        x = x - x.astype(jnp.bfloat16).astype(jnp.float32)
        total = total + half.mm(weights, x)
    return total


class Frame(NamedTuple):
    """What all programs of a chunk begin with.

    strict, causal: which token (row) sees which (column); head, tail: [C, 1], tokens that see the state before the
    chunk, and those that reach the one after it; keep: whether that one sees the one before. The last three are None
    without resets. Whatever is [C, K] is computed where it is used, which spares registers.
    """

    tile: GridIndex
    strict: Array
    causal: Array
    head: Array | None
    tail: Array | None
    keep: Array | None

    @property
    def size(self) -> int:
        """Tokens of the chunk."""
        return self.tile.plan.chunk

    def over_levels(self, body: Callable[[Array, Sums], Sums], start: Sums) -> Sums:
        """Runs `body` for every level, from blocks of two rows to the whole chunk, with the sums so far.

        A loop of the program: unrolled, the compiler would hold the factors of several levels at once.
        """
        return lax.fori_loop(0, self.size.bit_length() - 1, body, start)

    def log_w(self) -> Array:
        """Loads log_w, float32 [C, K]."""
        return self.tile.load("log_w").astype(jnp.float32)

    def sums(self, weights: Array) -> Array:
        """weights log_w, float32 [C, K], where weights [C, C] are 0 and 1."""
        return weighted(self.tile.plan.numerics, weights, self.tile.load("log_w"))

    def spread(self, weights: Array, x: Array) -> Array:
        """weights x: what readers and writers give to the decays between them, float32 [C, K]."""
        return weighted(self.tile.plan.numerics, weights, x)

    def load(self, name: str) -> Array:
        """Loads r, k, a or b, float32 [C, K]."""
        return self.tile.load(name).astype(jnp.float32)

    def operand(self, name: str, factor: Array) -> Array:
        """Loads r, k, a or b times a factor, rounded for products."""
        return (self.load(name) * factor).astype(self.tile.plan.numerics.operand)


def make_frame(tile: GridIndex) -> Frame:
    """Returns what the programs of a chunk begin with."""
    segments = make_segments(tile.reset())
    strict, causal = make_masks(tile.plan.chunk, segments)
    if segments is None:
        return Frame(tile, strict, causal, None, None, None)
    head, tail = (segments.number == 0)[:, None], (segments.number == segments.last)[:, None]
    return Frame(tile, strict, causal, head, tail, segments.last == 0)


class Factors(NamedTuple):
    """Of one level, float32 [C, K]: those of r, of a, and of b and k."""

    r: Array
    a: Array
    bk: Array


def level_factors(at: Frame, level: int | Array) -> Factors:
    """The factors of a level; of r and a they hold in second halves, of b and k in first ones."""
    here = at.sums(between(at.size, level))
    grown = jnp.exp(here)
    return Factors(grown, jnp.exp(here - at.log_w()), grown)


def factors_again(at: Frame, level: int | Array, factors: Factors) -> Factors:
    """The same factors, beside float32 products computed anew after a barrier: keeping them would spill."""
    n = at.tile.plan.numerics
    n.barrier()
    return level_factors(at, level) if n.operand == jnp.float32 else factors


def entering(at: Frame) -> tuple[Array, Array]:
    """The factors of r and of a from the start of the chunk to their token, float32 [C, K]."""
    row, col = indices(at.size)
    here = at.sums((col <= row).astype(jnp.float32))
    return jnp.exp(here), jnp.exp(here - at.log_w())


def leaving(at: Frame) -> Array:
    """The factor of b and k from their token to the end of the chunk, float32 [C, K]."""
    row, col = indices(at.size)
    return jnp.exp(at.sums((col > row).astype(jnp.float32)))


def whole(at: Frame) -> Array:
    """The factor of the state over the chunk, float32 [1, K]; 0 where a reset cuts it."""
    return where(at.keep, jnp.exp(jnp.sum(at.log_w(), axis=0, keepdims=True)))
