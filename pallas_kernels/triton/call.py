"""The call of a Triton kernel through jax-triton."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.blocks import Schedule
from pallas_kernels.gpu.tiles import Plan

Constants: TypeAlias = dict[str, int | bool]
"""Constants of a Triton kernel by name."""
Kernel: TypeAlias = Any
"""A function of the Triton language, which types it only where it is installed."""


def constants(x: OpInputs, plan: Plan) -> Constants:
    """Returns the constants that all kernels take."""
    batch, _, heads, _ = x.log_w.shape
    return {
        "B": batch, "T": plan.length, "H": heads, "K": plan.key, "V": plan.value,
        "KT": plan.key_tile, "VT": plan.value_tile, "C": plan.chunk,
        "HALF": plan.numerics.operand == jnp.bfloat16, "RESET": x.reset is not None,
    }  # fmt: skip


def flags(x: OpInputs) -> Array:
    """Returns the resets as kernels take them: anything where there are none."""
    return jnp.zeros(1, jnp.int32) if x.reset is None else x.reset.astype(jnp.int32)


def call(
    kernel: Kernel,
    arrays: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, int, int],
    schedule: Schedule,
    values: Constants,
) -> tuple[Array, ...]:
    """Runs a kernel, whose pointers are the arrays and then the outputs, over the grid."""
    import jax_triton  # type: ignore[import-not-found]

    return jax_triton.triton_call(
        *arrays, kernel=kernel, out_shape=tuple(outputs), grid=grid, num_warps=schedule.warps,
        num_stages=schedule.stages, **values,
    )  # fmt: skip
