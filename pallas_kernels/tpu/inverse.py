"""(I - A)^-1 of strictly triangular A, C x C by head, by doubling blocks.

Blocks of 8 rows by substitution on the vector units. Then X <- X + X off(A) X, where X holds the inverses of the blocks
on the diagonal and off(A) what joins them in pairs: as exact as substitution, and all matrix products. Blocks that are
smaller than a chunk lie side by side in the lanes, and of the rows only those that change are computed.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.tpu.packing import CHUNK, blocks, dot, iota, keep
from pallas_kernels.tpu.schedule import Stages

BASE = 8
TILE = 16
TILES = CHUNK // TILE


def _block(shape: tuple[int, ...], size: int) -> Array:
    """The number of the block of `size` lanes, within the head, that a lane belongs to."""
    return (iota(shape, 1) & (CHUNK - 1)) >> (size.bit_length() - 1)


def _split(x: Array, size: int) -> list[Array]:
    """The blocks of `size` rows."""
    return [x[i : i + size] for i in range(0, x.shape[0], size)]


@partial(jax.jit, static_argnames="size")
def _side_by_side(a: Array, size: int) -> Array:
    """The diagonal blocks, [C, L] -> [size, L]."""
    block = _block((size, a.shape[1]), size)
    first, *others = _split(a, size)
    for i, part in enumerate(others, 1):
        first = jnp.where(block == i, part, first)
    return first


@partial(jax.jit, static_argnames="size")
def _apart(x: Array, size: int) -> Array:
    """Blocks side by side, [rows, L] -> [size, L], of blocks of `size`, with zeros beside each."""
    block = _block(x.shape, x.shape[0]) & (size // x.shape[0] - 1)
    return jnp.concatenate([keep(block == i, x) for i in range(size // x.shape[0])], 0)


@partial(jax.jit, static_argnames="column")
def _substitute(d: Array, x: Array, column: int) -> Array:
    """X + A[:, column] X[column, :], block by block."""
    lanes = (iota(d.shape, 1) & -BASE) + column
    return x + jnp.take_along_axis(d, lanes, 1, mode="promise_in_bounds") * x[column : column + 1]


def _tile_blocks(x: Array) -> Array:
    """[16, L] with the blocks side by side -> [L, L] with them on the diagonal."""
    lane = iota(x.shape, 1) >> 4
    return jnp.concatenate([keep(lane == i, x) for i in range(x.shape[1] // TILE)], 0)


@partial(jax.jit, static_argnames="operand")
def _tile_left(d: Array, x: Array, operand) -> Array:
    """off(A) X for blocks of 8 rows in tiles of 16."""
    row, column = iota((TILE, d.shape[1]), 0), iota((TILE, d.shape[1]), 1) & (TILE - 1)
    return dot(keep((row >= BASE) != (column >= BASE), d), _tile_blocks(x), operand)


@partial(jax.jit, static_argnames="operand")
def _tile_right(x: Array, left: Array, operand) -> Array:
    """X + X (off(A) X)."""
    return x + dot(x, _tile_blocks(left), operand)


def _changing(size: int, upper: bool) -> list[int]:
    """Tiles of rows that change when blocks of `size` rows are joined in pairs."""
    return [i for i in range(TILES) if bool(i & size // TILE) != upper]


@partial(jax.jit, static_argnames=("size", "upper", "operand", "pack"))
def _left(a: Array, x: Array, size: int, upper: bool, operand, pack: int) -> Array:
    """The rows of off(A) X that are not zero."""
    block, parts = _block((TILE, a.shape[1]), size), _split(a, TILE)
    off = [keep(block == (i * TILE // size ^ 1), parts[i]) for i in _changing(size, upper)]
    return dot(jnp.concatenate(off, 0), blocks(x, pack), operand)


@partial(jax.jit, static_argnames=("size", "upper", "operand", "pack"))
def _right(x: Array, left: Array, size: int, upper: bool, operand, pack: int) -> Array:
    """X + X (off(A) X), of which only some rows change."""
    rows, zero = _changing(size, upper), jnp.zeros((TILE, x.shape[1]), jnp.float32)

    def spread(part: Array, others: list[Array]) -> Array:
        new = dict(zip(rows, _split(part, TILE), strict=True))
        return jnp.concatenate([new.get(i, others[i]) for i in range(TILES)], 0)

    parts = _split(x, TILE)
    changed = jnp.concatenate([parts[i] for i in rows], 0)
    changed += dot(changed, blocks(spread(left, [zero] * TILES), pack), operand)
    return spread(changed, parts)


def inverse(a: Array, pack: int, operand, *, upper: bool = False) -> Stages[Array]:
    """(I - A)^-1 of strictly lower (or upper) triangular A [C, pack * C], float32."""
    base = _side_by_side(a, size=BASE)
    x = (iota((BASE, a.shape[1]), 0) == (iota((BASE, a.shape[1]), 1) & (BASE - 1))).astype(jnp.float32)
    for column in range(BASE - 1, 0, -1) if upper else range(BASE - 1):
        x = _substitute(base, x, column=column)
        yield
    x = _apart(x, size=TILE)
    left = _tile_left(_side_by_side(a, size=TILE), x, operand=operand)
    yield
    x = _tile_right(x, left, operand=operand)
    yield
    x = _apart(x, size=CHUNK)
    for size in (16, 32):
        left = _left(a, x, size=size, upper=upper, operand=operand, pack=pack)
        yield
        x = _right(x, left, size=size, upper=upper, operand=operand, pack=pack)
        yield
    return x
