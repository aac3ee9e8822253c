"""What one GPU program sees: sizes, and masked reads and writes of the tiles of one chunk."""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import Numerics

Ref: TypeAlias = Any
"""Memory of a GPU as a kernel sees it, which has no public type in Pallas."""
Limit: TypeAlias = int | Array | None


class Plan(NamedTuple):
    """Static facts of one launch.

    length, key, value: sizes of the arrays; key_tile, value_tile: powers of two; chunk: tokens per chunk; every: chunks
    per saved state, a power of two.
    """

    length: int
    key: int
    value: int
    key_tile: int
    value_tile: int
    chunk: int
    every: int
    numerics: Numerics

    @property
    def chunks(self) -> int:
        """Chunks of a sequence."""
        return pl.cdiv(self.length, self.chunk)

    @property
    def saved_states(self) -> int:
        """States that the forward saves, for each sequence and head."""
        return pl.cdiv(self.chunks, self.every)

    @property
    def blocks(self) -> int:
        """Programs that share one head, each with a block of the value axis."""
        return pl.cdiv(self.value, self.value_tile)

    def wide_keys(self) -> "Plan":
        """Returns the plan with tiles [C, K] that are at least twice as wide as high.

        The compiler gives each warp all columns of a square tile and some columns of a wider one. With the first,
        programs of many square tiles spill, so keys take twice as many columns, half of them outside.
        """
        return self._replace(key_tile=max(self.key_tile, 2 * self.chunk))

    def saved_before(self, i: Array) -> Array:
        """Returns the index of the last saved state at or before chunk i."""
        return i >> (self.every.bit_length() - 1)


class TileBuffer(NamedTuple):
    """The tiles of one program; columns from `key_limit` and `value_limit` on are outside, None if none are."""

    plan: Plan
    key_limit: int | None
    value_limit: Limit

    def at(self, x: OpInputs, i: Array) -> "GridIndex":
        """Returns chunk i of the refs in x."""
        return GridIndex(self.plan, self, x, i)

    def _state_mask(self) -> Array | None:
        return _mask((self.plan.value_tile, self.plan.key_tile), self.value_limit, self.key_limit)

    def load_tile(self, ref: Ref, *index: Array) -> Array:
        """Reads [V, K], that of this index of the axes before, 0 outside."""
        return _load(ref.at[index], self._state_mask())

    def load_state(self, ref: Ref, *index: Array) -> Array:
        """`load_tile` in float32."""
        return self.load_tile(ref, *index).astype(jnp.float32)

    def store_state(self, ref: Ref, s: Array, *index: Array) -> None:
        """Writes a state [V, K], as that of this index of the axes before, inside only."""
        pallas_triton.store(ref.at[index], s.astype(ref.dtype), mask=self._state_mask())


class GridIndex(NamedTuple):
    """Chunk i of one program, and refs named like the inputs of the op."""

    plan: Plan
    buffer: TileBuffer
    refs: OpInputs
    i: Array

    def load(self, name: str) -> Array:
        """Reads the tile of the ref `name`, 0 outside."""
        return self.get(getattr(self.refs, name), key=name != "v")

    def store(self, name: str, x: Array) -> None:
        """Writes a tile to the ref `name`, inside only."""
        self.put(getattr(self.refs, name), x, key=name != "v")

    def get(self, ref: Ref, key: bool) -> Array:
        """Reads the tile of a [T, K] (`key`) or [T, V] ref, 0 outside."""
        return _load(ref.at[self._rows()], self._mask(key))

    def get_transposed(self, ref: Ref, key: bool) -> Array:
        """Reads [K, C] (`key`) or [V, C], the tile of a [T, K] or [T, V] ref turned on its way from memory."""
        (height, width), rows, columns = self._bounds(key)
        shape = width, height
        token = self.i * self.plan.chunk + lax.broadcasted_iota(jnp.int32, shape, 1)
        index = token, lax.broadcasted_iota(jnp.int32, shape, 0)
        return _load(ref.at[index], _mask(shape, columns, rows))

    def put(self, ref: Ref, x: Array, key: bool) -> None:
        """Writes a tile to a [T, K] (`key`) or [T, V] ref, inside only."""
        pallas_triton.store(ref.at[self._rows()], x.astype(ref.dtype), mask=self._mask(key))

    def reset(self) -> Array | None:
        """Reads the resets, int32 [C] of 0 and 1, 0 outside; None without resets."""
        if self.refs.reset is None:
            return None
        ref: Ref = self.refs.reset
        inside = lax.iota(jnp.int32, self.plan.chunk) < self._rows_left()
        return pallas_triton.load(ref.at[self._rows()], mask=inside, other=0)

    def _rows(self) -> slice | pl.Slice:
        return pl.ds(self.i * self.plan.chunk, self.plan.chunk)

    def _rows_left(self) -> Array:
        return self.plan.length - self.i * self.plan.chunk

    def _mask(self, key: bool) -> Array | None:
        return _mask(*self._bounds(key))

    def _bounds(self, key: bool) -> tuple[tuple[int, int], Limit, Limit]:
        """(shape, rows and columns from these on are outside) of the tile of a [T, K] (`key`) or [T, V] ref."""
        plan, buffer = self.plan, self.buffer
        rows = self._rows_left() if plan.length % plan.chunk else None
        if key:
            return (plan.chunk, plan.key_tile), rows, buffer.key_limit
        return (plan.chunk, plan.value_tile), rows, buffer.value_limit


def make_tile_buffer(plan: Plan, block: int | Array) -> TileBuffer:
    """Returns the tiles of the running program, which has this block of the value axis."""
    key = plan.key if plan.key % plan.key_tile else None
    value = plan.value - block * plan.value_tile if plan.value % plan.value_tile else None
    return TileBuffer(plan, key, value)


def _load(ref: Ref, mask: Array | None) -> Array:
    return pallas_triton.load(ref) if mask is None else pallas_triton.load(ref, mask=mask, other=0.0)


def _mask(shape: tuple[int, int], rows: Limit, columns: Limit) -> Array | None:
    """Bool: row < rows and column < columns; None stands for no limit."""
    mask = None
    for axis, limit in enumerate((rows, columns)):
        if limit is not None:
            inside = lax.broadcasted_iota(jnp.int32, shape, axis) < limit
            mask = inside if mask is None else mask & inside
    return mask
