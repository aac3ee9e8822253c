"""What a GPU program sees of each array, and the call of a kernel."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import PyTree

from pallas_kernels.chunked.layout import OpInputs, shape_like
from pallas_kernels.gpu.tiles import Plan

Block: TypeAlias = tuple[PyTree, PyTree]
"""What one program sees of an array, and the array or its shape and dtype; or a tree of each."""


class Schedule(NamedTuple):
    """How Triton compiles a kernel: warps of a program, and stages of the pipeline of its loads."""

    warps: int
    stages: int


class Specs(NamedTuple):
    """The block of one program of each kind of array: [B, T, H, K], [B, T, H, V], [B, T], [B, H, V, K], [n, B, H, V, K]
    and parts of a gradient, [blocks of V, B, T, H, K]."""

    key: pl.BlockSpec
    value: pl.BlockSpec
    reset: pl.BlockSpec
    state: pl.BlockSpec
    states: pl.BlockSpec
    part: pl.BlockSpec

    def inputs(self, x: OpInputs) -> OpInputs:
        """Returns one for each array in x."""
        specs = OpInputs(self.key, self.key, self.key, self.value, self.key, self.key, self.reset)  # type: ignore
        return OpInputs(*(None if z is None else spec for z, spec in zip(x, specs, strict=True)))  # type: ignore


def make_specs(plan: Plan) -> Specs:
    """The grid is (H, blocks of V, B); blocks may reach beyond the array, where the kernels mask."""
    time = plan.chunks * plan.chunk
    state = (None, None, plan.value_tile, plan.key_tile)
    return Specs(
        pl.BlockSpec((None, time, None, plan.key_tile), lambda h, j, b: (b, 0, h, 0)),
        pl.BlockSpec((None, time, None, plan.value_tile), lambda h, j, b: (b, 0, h, j)),
        pl.BlockSpec((None, time), lambda h, j, b: (b, 0)),
        pl.BlockSpec(state, lambda h, j, b: (b, h, j, 0)),
        pl.BlockSpec((plan.saved_states, *state), lambda h, j, b: (0, b, h, j, 0)),
        pl.BlockSpec((None, None, time, None, plan.key_tile), lambda h, j, b: (j, b, 0, h, 0)),
    )


def make_chunk_specs(plan: Plan) -> Specs:
    """Blocks of arrays of tokens for the grid (H, chunks, B); all of the value axis."""
    value = pl.BlockSpec((None, plan.chunks * plan.chunk, None, plan.value_tile), lambda h, i, b: (b, 0, h, 0))
    return make_specs(plan)._replace(value=value)


def each_chunk(plan: Plan, rows: int, columns: int) -> pl.BlockSpec:
    """The block of an array [n, B, H, rows, columns], a tile for each chunk; the grid is (H, ., B)."""
    return pl.BlockSpec((plan.chunks, None, None, rows, columns), lambda h, j, b: (0, b, h, 0, 0))


def call(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, int, int],
    inputs: Sequence[Block],
    outputs: Sequence[Block],
    schedule: Schedule,
    interpret: bool,
) -> tuple[Array, ...]:
    """Runs a kernel, whose refs are the inputs and then the outputs, over the grid."""
    like = jax.tree.leaves([array for _, array in inputs])[0]
    return pl.pallas_call(
        kernel,
        out_shape=tuple(shape_like(like, z.shape, z.dtype) for _, z in outputs),
        grid=grid,
        in_specs=tuple(spec for spec, _ in inputs),
        out_specs=tuple(spec for spec, _ in outputs),
        interpret=interpret,
        compiler_params=pallas_triton.CompilerParams(num_warps=schedule.warps, num_stages=schedule.stages),
        name=f"wkv7_{name}",
    )(*(array for _, array in inputs))
