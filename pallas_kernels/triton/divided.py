"""Launches of the Triton kernels that are divided over time, like those of Pallas in `pallas_kernels.gpu.divided`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.blocks import Schedule
from pallas_kernels.gpu.divided import Prepared, State, States, Values
from pallas_kernels.gpu.parallel import make_weights
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import Divided
from pallas_kernels.triton.call import Kernel, call, constants, flags


class Kernels(NamedTuple):
    """The passes of the op over inputs x. plan: of chunks of `tuning.chunk` tokens, of all rows of the state."""

    x: OpInputs
    plan: Plan
    tuning: Divided

    def forward(self, s0: State) -> tuple[Values, State, States]:
        """(y, s_T, the state before each chunk)."""
        prepared = self._prepare(self.x.v, backward=False)
        s_last, states = self._scan(prepared, s0, reverse=False, save=True)
        arrays = (*self._given(), prepared.inverse, prepared.factors, states)
        schedule = Schedule(self.tuning.output_warps, 1)
        (y,) = call(
            _program("outputs"), arrays, [_like(self.x.v)], self._grid(), schedule, constants(self.x, self.plan)
        )
        return y, s_last, states

    def backward(self, states: States, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0) from those of y and s_T and the state before each chunk."""
        prepared = self._prepare(dy, backward=True)
        ds0, d_states = self._scan(prepared, ds, reverse=True, save=True)
        arrays = (*self._given(), prepared.inverse, prepared.factors, states, d_states, dy)
        schedule, values = Schedule(self.tuning.gradient_warps, 1), constants(self.x, self.plan.wide_keys())
        return *call(_program("gradients"), arrays, [*map(_like, self.x[:6])], self._grid(), schedule, values), ds0

    def state_backward(self, dy: Values, ds: State) -> State:
        """The gradient of s0 alone; reads neither k nor v nor any state."""
        return self._scan(self._prepare(dy, backward=True), ds, reverse=True, save=False)[0]

    def _prepare(self, dy: Values, backward: bool) -> Prepared:
        """dy: anything of its shape in the forward, which does not read it."""
        plan, low = self.plan, self.plan.numerics.operand
        outputs = [
            self._array(plan.chunk, plan.chunk, low), self._array(plan.key, plan.key, low),
            self._array(plan.value, plan.key, low), self._array(3, plan.key, jnp.float32),
        ]  # fmt: skip
        schedule, values = Schedule(self.tuning.prepare_warps, 1), constants(self.x, plan) | {"BACKWARD": backward}
        given = (*self._given(), dy)
        return Prepared(*call(_program("prepare"), given, outputs, self._grid(), schedule, values))

    def _scan(self, prepared: Prepared, s: State, reverse: bool, save: bool) -> tuple[State, States]:
        """(the state after the last chunk, or before the first with `reverse`; those in between if saved)."""
        plan = self.plan._replace(value_tile=min(self.plan.value_tile, self.tuning.block))
        states = self._array(plan.value, plan.key, plan.numerics.operand)
        outputs = [_like(s), states if save else jax.ShapeDtypeStruct((1,), states.dtype)]
        grid = (s.shape[1], plan.blocks, s.shape[0])
        values = {n: z for n, z in constants(self.x, plan).items() if n != "RESET"}
        values |= {"REVERSE": reverse, "SAVE": save, "STAGES": self.tuning.stages}
        schedule = Schedule(self.tuning.scan_warps, self.tuning.stages)
        arrays = (prepared.step, prepared.change, prepared.factors, s)
        last, saved = call(_program("scan"), arrays, outputs, grid, schedule, values)
        return last, saved

    def _given(self) -> tuple[Array, ...]:
        """What the kernels that run chunk by chunk read first."""
        return *self.x[:6], flags(self.x), make_weights(self.plan.chunk, self.plan.numerics.operand)

    def _array(self, rows: int, columns: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        batch, _, heads, _ = self.x.log_w.shape
        return jax.ShapeDtypeStruct((self.plan.chunks, batch, heads, rows, columns), dtype)

    def _grid(self) -> tuple[int, int, int]:
        batch, _, heads, _ = self.x.log_w.shape
        return heads, self.plan.chunks, batch


def _program(name: str) -> Kernel:
    """The Triton program of this name, which only machines with Triton can import."""
    from pallas_kernels.triton import parallel

    return getattr(parallel, name)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
