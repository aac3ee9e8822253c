"""How the GPU programs are launched: tile sizes, the block of each array that a program sees, residuals."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Float

from pallas_kernels import decode
from pallas_kernels.chunked.layout import OpInputs, Saved, shape_like
from pallas_kernels.gpu import kernels
from pallas_kernels.gpu.chunk import Numerics
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import BFLOAT16, FLOAT32, Tuning
from pallas_kernels.support import only_on

MULTIPROCESSORS = 128
"""Below this many programs the value axis is divided; an A100 has 108 multiprocessors, an H100 132."""

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]
Block: TypeAlias = tuple[pl.BlockSpec, Array | jax.ShapeDtypeStruct]
"""What one program sees of an array, and the array or its shape and dtype."""


class Launch(NamedTuple):
    """The four functions that `chunked.make_op` asks for. tuning: None for `BFLOAT16` or `FLOAT32`, by the inputs.

    interpret: run the kernels on a CPU; otherwise the program compiles for a GPU only.
    """

    tuning: Tuning | None = None
    interpret: bool = False

    def forward(self, x: OpInputs, s0: State) -> tuple[Values, State]:
        """(y, s_T); a single token is a step of decoding."""
        if x.v.shape[1] == 1:
            return decode.forward(x, s0)
        plan = self.plan(x)
        spec = make_specs(plan)
        outputs = [(spec.value, x.v), (spec.state, s0)]
        y, s_last = self._run(kernels.forward, plan, x, [(spec.state, s0)], outputs)
        return y, s_last

    def forward_saving(self, x: OpInputs, s0: State) -> tuple[Values, State, Saved]:
        """(y, s_T, what the full backward needs): for bfloat16 inputs, states and u in bfloat16."""
        plan = self.plan(x)
        spec = make_specs(plan)
        states = jax.ShapeDtypeStruct((plan.saved_states, *s0.shape), plan.numerics.operand)
        u = jax.ShapeDtypeStruct(x.v.shape, plan.numerics.operand)
        outputs = [(spec.value, x.v), (spec.state, s0), (spec.states, states), (spec.value, u)]
        y, s_last, states, u = self._run(kernels.forward, plan, x, [(spec.state, s0)], outputs)
        return y, s_last, Saved(x, states, u)

    def backward(self, saved: Saved, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
        x = saved.inputs
        plan = self.plan(x)
        spec = make_specs(plan)
        inputs = [(spec.states, saved.states), (spec.value, saved.u), (spec.value, dy), (spec.state, ds)]
        outputs = [*zip(spec.inputs(x)[:6], x[:6], strict=True), (spec.state, ds)]
        if plan.blocks == 1:
            return self._run(kernels.backward, plan, x, inputs, outputs)
        parts = [(spec.part, jax.ShapeDtypeStruct((plan.blocks, *z.shape), jnp.float32)) for z in x[:6]]
        parts[3] = outputs[3]
        dr, dlog_w, dk, dv, da, db, ds = self._run(kernels.backward, plan, x, inputs, [*parts, outputs[6]])
        dr, dlog_w, dk, da, db = (
            g.sum(0).astype(z.dtype)
            for g, z in zip((dr, dlog_w, dk, da, db), (x.r, x.log_w, x.k, x.a, x.b), strict=True)
        )
        return dr, dlog_w, dk, dv, da, db, ds

    def state_backward(self, x: OpInputs, dy: Values, ds: State) -> State:
        """The gradient of s0 alone."""
        plan = self.plan(x)
        spec = make_specs(plan)
        inputs = [(spec.value, dy), (spec.state, ds)]
        used = x._replace(k=None, v=None)
        return self._run(kernels.state_backward, plan, used, inputs, [(spec.state, ds)])[0]

    def _operand(self, x: OpInputs) -> np.dtype:
        bf16 = all(z.dtype == jnp.bfloat16 for z in (x.r, x.k, x.v, x.a, x.b) if z is not None)
        return jnp.dtype(jnp.bfloat16 if bf16 else jnp.float32)

    def tuned(self, x: OpInputs) -> Tuning:
        """Returns the tuning for these inputs."""
        return self.tuning or (BFLOAT16 if self._operand(x) == jnp.bfloat16 else FLOAT32)

    def plan(self, x: OpInputs) -> Plan:
        """Returns the sizes of the launch for these inputs."""
        batch, length, heads, key = x.r.shape
        value, tuning = x.v.shape[3], self.tuned(x)
        return Plan(
            length=length,
            key=key,
            value=value,
            key_tile=tile(key),
            value_tile=min(value_tile(batch * heads, value), tuning.value_block),
            chunk=tuning.chunk,
            every=tuning.checkpoint // tuning.chunk,
            numerics=Numerics(self._operand(x), self.interpret),
        )

    def _run(
        self, kernel: Callable[..., None], plan: Plan, x: OpInputs, inputs: Sequence[Block], outputs: Sequence[Block]
    ) -> tuple[Array, ...]:
        """One program per head, block of values and sequence; refs in the order x, inputs, outputs."""
        if x.reset is not None:
            x = x._replace(reset=x.reset.astype(jnp.int32))
        if not self.interpret:
            x = x._replace(log_w=only_on(x.log_w, "cuda", "gpu"))
        tuning, batch, heads = self.tuned(x), x.r.shape[0], x.r.shape[2]
        full = kernel is kernels.backward
        call = pl.pallas_call(
            functools.partial(kernel, plan=plan),
            out_shape=tuple(shape_like(x.r, z.shape, z.dtype) for _, z in outputs),
            grid=(heads, plan.blocks, batch),
            in_specs=(make_specs(plan).inputs(x), *(spec for spec, _ in inputs)),
            out_specs=tuple(spec for spec, _ in outputs),
            interpret=self.interpret,
            compiler_params=pallas_triton.CompilerParams(
                num_warps=tuning.backward_warps if full else tuning.warps,
                num_stages=tuning.backward_stages if full else tuning.stages,
            ),
            name=f"wkv7_{kernel.__name__}",
        )
        return call(x, *(z for _, z in inputs))


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


def tile(size: int) -> int:
    """The power of two, at least 16, that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


def value_tile(heads: int, value: int) -> int:
    """Rows of the state per program: all, unless too few heads (times sequences) would leave the GPU idle."""
    size = tile(value)
    while size > 16 and 2 * heads <= MULTIPROCESSORS:
        size, heads = size // 2, 2 * heads
    return size
