"""What one GPU program sees: sizes, and masked reads and writes of the tiles of one chunk."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import Numerics

Ref = Any


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
        return pl.cdiv(self.length, self.chunk)

    @property
    def saved_states(self) -> int:
        return pl.cdiv(self.chunks, self.every)

    @property
    def blocks(self) -> int:
        """Programs that share one head, each with a block of the value axis."""
        return pl.cdiv(self.value, self.value_tile)

    def saved_before(self, i: Array) -> Array:
        """Index of the last saved state at or before chunk i."""
        return i >> (self.every.bit_length() - 1)


class Window(NamedTuple):
    """The tiles of one program; columns from `key_limit` and `value_limit` on are outside, None if none are."""

    plan: Plan
    key_limit: Any
    value_limit: Any

    def at(self, x: OpInputs, i: Array) -> "Here":
        return Here(self.plan, self, x, i)

    def _state_mask(self) -> Array | None:
        return _mask((self.plan.value_tile, self.plan.key_tile), self.value_limit, self.key_limit)

    def load_state(self, ref: Ref) -> Array:
        """float32 [V, K] from a ref of that shape, 0 outside."""
        return _load(ref, self._state_mask()).astype(jnp.float32)

    def store_state(self, ref: Ref, s: Array) -> None:
        pallas_triton.store(ref, s.astype(ref.dtype), mask=self._state_mask())


class Here(NamedTuple):
    """Chunk i of one program, and refs named like the inputs of the op."""

    plan: Plan
    window: Window
    refs: OpInputs
    i: Array

    def load(self, name: str) -> Array:
        """The tile of the ref `name`, 0 outside."""
        return self.get(getattr(self.refs, name), key=name != "v")

    def store(self, name: str, x: Array) -> None:
        self.put(getattr(self.refs, name), x, key=name != "v")

    def get(self, ref: Ref, key: bool) -> Array:
        """The tile of a [T, K] (`key`) or [T, V] ref, 0 outside."""
        return _load(ref.at[self._rows()], self._mask(key))

    def put(self, ref: Ref, x: Array, key: bool) -> None:
        pallas_triton.store(ref.at[self._rows()], x.astype(ref.dtype), mask=self._mask(key))

    def reset(self) -> Array | None:
        """int32 [C] of 0 and 1, 0 outside; None without resets."""
        if self.refs.reset is None:
            return None
        ref: Ref = self.refs.reset
        inside = lax.iota(jnp.int32, self.plan.chunk) < self._rows_left()
        return pallas_triton.load(ref.at[self._rows()], mask=inside, other=0)

    def _rows(self) -> Any:
        return pl.ds(self.i * self.plan.chunk, self.plan.chunk)

    def _rows_left(self) -> Array:
        return self.plan.length - self.i * self.plan.chunk

    def _mask(self, key: bool) -> Array | None:
        plan, window = self.plan, self.window
        rows = self._rows_left() if plan.length % plan.chunk else None
        if key:
            return _mask((plan.chunk, plan.key_tile), rows, window.key_limit)
        return _mask((plan.chunk, plan.value_tile), rows, window.value_limit)


def make_window(plan: Plan) -> Window:
    """The window of the running program; blocks of values are axis 1 of the grid."""
    key = plan.key if plan.key % plan.key_tile else None
    value = plan.value - pl.program_id(1) * plan.value_tile if plan.value % plan.value_tile else None
    return Window(plan, key, value)


def _load(ref: Ref, mask: Array | None) -> Array:
    return pallas_triton.load(ref) if mask is None else pallas_triton.load(ref, mask=mask, other=0.0)


def _mask(shape: tuple[int, int], rows: Any, columns: Any) -> Array | None:
    """Bool: row < rows and column < columns; None stands for no limit."""
    mask = None
    for axis, limit in enumerate((rows, columns)):
        if limit is not None:
            inside = lax.broadcasted_iota(jnp.int32, shape, axis) < limit
            mask = inside if mask is None else mask & inside
    return mask
