"""Launches of the Triton kernels for log_w down to -20, like those of Pallas in `pallas_kernels.gpu.wide_launch`."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.blocks import Schedule
from pallas_kernels.gpu.divided import State, States, Values
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import Wide
from pallas_kernels.gpu.wide import Scores
from pallas_kernels.triton.call import Constants, call, constants, flags


class Kernels(NamedTuple):
    """The passes of the op over inputs x. plan: of all rows of the state; block: most rows of a program over time."""

    x: OpInputs
    plan: Plan
    tuning: Wide
    block: int

    def forward(self, s0: State) -> tuple[Values, State]:
        """(y, s_T)."""
        y, s_last, _, _ = self._forward(s0, save=False)
        return y, s_last

    def forward_saving(self, s0: State) -> tuple[Values, State, States, Values]:
        """(y, s_T, the state before each chunk, u)."""
        y, s_last, states, u = self._forward(s0, save=True)
        return y, s_last, states, u

    def backward(self, states: States, u: Values, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0) from those of y and s_T."""
        x, scores = self.x, self._prepare(with_k=True)
        ds0, d_states, dz = self._state_backward(scores, dy, ds, save=True)
        arrays = (*x[:6], flags(x), scores.ak, scores.rk, states, d_states, u, dz, dy)
        outputs = [jax.ShapeDtypeStruct(z.shape, z.dtype) for z in x[:6]]
        passes = self._replace(plan=self.plan.wide_keys())
        return *passes._each_chunk("gradients", arrays, outputs, self.tuning.gradient_warps, {}), ds0

    def state_backward(self, dy: Values, ds: State) -> State:
        """The gradient of s0 alone; reads neither k nor v nor any state."""
        return self._state_backward(self._prepare(with_k=False), dy, ds, save=False)[0]

    def _prepare(self, with_k: bool) -> Scores:
        """Without k, A_ak and A_rk hold one number that nothing reads."""
        x, plan, (batch, _, heads, _) = self.x, self.plan, self.x.log_w.shape
        low, size = plan.numerics.operand, (plan.chunks, batch, heads, plan.chunk, plan.chunk)
        outputs = [jax.ShapeDtypeStruct(size if with_k or i < 2 else (1,), low) for i in range(4)]
        arrays = (x.r, x.log_w, x.k if with_k else x.r, x.a, x.b, flags(x))
        values: Constants = {"WITH_K": with_k}
        return Scores(*self._each_chunk("prepare", arrays, outputs, self.tuning.prepare_warps, values))

    def _forward(self, s0: State, save: bool) -> tuple[Array, ...]:
        arrays = (*self.x[:6], flags(self.x), *self._prepare(with_k=True), s0)
        outputs = [self.x.v, s0, *self._saved(s0, save)]
        return self._follow("forward", arrays, outputs, save)

    def _state_backward(self, scores: Scores, dy: Values, ds: State, save: bool) -> tuple[Array, ...]:
        x = self.x
        arrays = (x.r, x.log_w, x.a, x.b, flags(x), scores.inverse, scores.rb, dy, ds)
        return self._follow("state_backward", arrays, [ds, *self._saved(ds, save)], save)

    def _saved(self, s: State, save: bool) -> list[jax.ShapeDtypeStruct]:
        """States [n, B, H, V, K] and rows [B, T, H, V], as products round them; one number each if not to be saved."""
        low = self.plan.numerics.operand
        sizes = ((self.plan.chunks, *s.shape), self.x.v.shape) if save else ((1,), (1,))
        return [jax.ShapeDtypeStruct(size, low) for size in sizes]

    def _follow(
        self, name: str, arrays: Sequence[Array], outputs: Sequence[Array | jax.ShapeDtypeStruct], save: bool
    ) -> tuple[Array, ...]:
        """One program for each head, block of values and sequence."""
        plan, (batch, _, heads, _) = self.plan._replace(value_tile=self.block), self.x.log_w.shape
        schedule = Schedule(self.tuning.follow_warps, self.tuning.stages)
        values = constants(self.x, plan) | {"SAVE": save}
        return _call(name, arrays, outputs, (heads, plan.blocks, batch), schedule, values)

    def _each_chunk(
        self, name: str, arrays: Sequence[Array], outputs: Sequence[jax.ShapeDtypeStruct], warps: int, more: Constants
    ) -> tuple[Array, ...]:
        """One program for each chunk, head and sequence."""
        batch, _, heads, _ = self.x.log_w.shape
        values = constants(self.x, self.plan) | {"LEVELS": self.plan.chunk.bit_length() - 1} | more
        return _call(name, arrays, outputs, (heads, self.plan.chunks, batch), Schedule(warps, 1), values)


def _call(
    name: str,
    arrays: Sequence[Array],
    outputs: Sequence[Array | jax.ShapeDtypeStruct],
    grid: tuple[int, int, int],
    schedule: Schedule,
    values: Constants,
) -> tuple[Array, ...]:
    """Runs the Triton program of this name, which only machines with Triton can import."""
    from pallas_kernels.triton import wide

    like = [jax.ShapeDtypeStruct(z.shape, jnp.dtype(z.dtype)) for z in outputs]
    return call(getattr(wide, name), arrays, like, grid, schedule, values)
