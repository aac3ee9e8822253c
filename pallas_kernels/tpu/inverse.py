"""(I - A)^-1 of strictly triangular A, C x C by head, by doubling blocks.

Blocks of 8 rows by substitution on the vector units. Then X <- X + off(X A) X, where X holds the inverses of the blocks
on the diagonal and off(X A) what joins them in pairs: as exact as substitution, and all matrix products. X A itself
becomes X A + off(X A) X A, by the same left factor: one product with both side by side, 256 lanes, costs a matrix unit
of that width no more than one of 128. Of the rows only those that change are computed.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.tpu.packing import CHUNK, blocks, dot, iota, keep
from pallas_kernels.tpu.schedule import Product, Stages

BASE = 8


def _block(shape: tuple[int, ...], size: int) -> Array:
    """The number of the block of `size` lanes, within the head, that a lane belongs to."""
    return (iota(shape, 1) & (CHUNK - 1)) >> (size.bit_length() - 1)


def _split(x: Array, size: int) -> list[Array]:
    """The blocks of `size` rows."""
    return [x[i : i + size] for i in range(0, x.shape[0], size)]


@jax.jit
def _side_by_side(a: Array) -> Array:
    """The diagonal blocks of 8 rows, [C, L] -> [8, L]."""
    block = _block((BASE, a.shape[1]), BASE)
    first, *others = _split(a, BASE)
    for i, part in enumerate(others, 1):
        first = jnp.where(block == i, part, first)
    return first


@jax.jit
def _apart(x: Array) -> Array:
    """Blocks side by side, [8, L] -> [C, L], with zeros beside each."""
    block = _block(x.shape, BASE)
    return jnp.concatenate([keep(block == i, x) for i in range(CHUNK // BASE)], 0)


@partial(jax.jit, static_argnames="column")
def _substitute(d: Array, x: Array, column: int) -> Array:
    """X + A[:, column] X[column, :], block by block."""
    lanes = (iota(d.shape, 1) & -BASE) + column
    return x + jnp.take_along_axis(d, lanes, 1, mode="promise_in_bounds") * x[column : column + 1]


@partial(jax.jit, static_argnames=("operand", "pack"))
def _times(x: Array, a: Array, operand, pack: int) -> Array:
    """X A."""
    return dot(x, blocks(a, pack), operand)


def _changing(size: int, upper: bool) -> list[int]:
    """The blocks of `size` rows that change when blocks are joined in pairs."""
    return [i for i in range(CHUNK // size) if bool(i & 1) != upper]


@partial(jax.jit, static_argnames=("size", "upper"))
def _left(xa: Array, size: int, upper: bool) -> Array:
    """off(X A), of the rows that change."""
    block, parts = _block((size, xa.shape[1]), size), _split(xa, size)
    return jnp.concatenate([keep(block == (i ^ 1), parts[i]) for i in _changing(size, upper)], 0)


@partial(jax.jit, static_argnames=("size", "upper"))
def _added(x: Array, more: Array, size: int, upper: bool) -> Array:
    """X with `more` added to the rows that change."""
    rows = _split(x, size)
    for i, part in zip(_changing(size, upper), _split(more, size), strict=True):
        rows[i] += part
    return jnp.concatenate(rows, 0)


@partial(jax.jit, static_argnames=("size", "upper", "operand", "pack"))
def _joined(x: Array, xa: Array, size: int, upper: bool, operand, pack: int) -> tuple[Array, Array]:
    """X and X A after blocks of `size` rows are joined in pairs."""
    both = jnp.concatenate([blocks(x, pack), blocks(xa, pack)], 1)
    new = dot(_left(xa, size=size, upper=upper), both, operand)
    return tuple(
        _added(before, more, size=size, upper=upper)
        for before, more in zip((x, xa), jnp.split(new, 2, axis=1), strict=True)
    )


def inverse(a: Array, pack: int, operand, *, upper: bool = False) -> Stages[Array]:
    """(I - A)^-1 of strictly lower (or upper) triangular A [C, pack * C], float32."""
    a = a.astype(jnp.float32)
    base = _side_by_side(a)
    x = (iota((BASE, a.shape[1]), 0) == (iota((BASE, a.shape[1]), 1) & (BASE - 1))).astype(jnp.float32)
    for column in range(BASE - 1, 0, -1) if upper else range(BASE - 1):
        x = _substitute(base, x, column=column)
        yield
    x = _apart(x)
    xa = _times(x, a, operand=operand, pack=pack)
    yield
    for size in (8, 16):
        x, xa = _joined(x, xa, size=size, upper=upper, operand=operand, pack=pack)
        yield
    last = CHUNK // 2
    more = yield Product(_left(xa, size=last, upper=upper), blocks(x, pack), operand)
    return _added(x, more, size=last, upper=upper)
