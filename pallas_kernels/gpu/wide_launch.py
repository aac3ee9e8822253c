"""Launches of the kernels for log_w down to -20, see `pallas_kernels.gpu.wide`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu import wide
from pallas_kernels.gpu.blocks import Block, Schedule, Specs, call, each_chunk, make_chunk_specs, make_specs
from pallas_kernels.gpu.divided import State, States, Values
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import Wide
from pallas_kernels.gpu.wide import Ends, Scores


class Kernels(NamedTuple):
    """The passes of the op over inputs x. plan: of all rows of the state; block: most rows of a program over time."""

    x: OpInputs
    plan: Plan
    tuning: Wide
    block: int

    def forward(self, s0: State) -> tuple[Values, State]:
        """(y, s_T)."""
        y, s_last = self._forward(s0, [])
        return y, s_last

    def forward_saving(self, s0: State) -> tuple[Values, State, States, Values]:
        """(y, s_T, the state before each chunk, u)."""
        y, s_last, states, u = self._forward(s0, self._saved(s0))
        return y, s_last, states, u

    def backward(self, states: States, u: Values, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0) from those of y and s_T."""
        x, plan = self.x, self.plan.wide_keys()
        scores = self._prepare(x._replace(v=None))
        ds0, d_states, dz = self._state_backward(scores, dy, ds, self._saved(ds))
        spec, state = make_chunk_specs(plan), each_chunk(plan, plan.value_tile, plan.key_tile)
        ends = Ends(state, state, *(spec.value,) * 3), Ends(states, d_states, u, dz, dy)
        wanted = [*zip(spec.inputs(x)[:6], x[:6], strict=True)]
        given = [self._scores(scores), ends]
        return *self._replace(plan=plan)._each_chunk(wide.gradients, x, given, wanted, self.tuning.gradient_warps), ds0

    def state_backward(self, dy: Values, ds: State) -> State:
        """The gradient of s0 alone; reads neither k nor v nor any state."""
        return self._state_backward(self._prepare(self.x._replace(k=None, v=None)), dy, ds, [])[0]

    def _prepare(self, x: OpInputs) -> Scores:
        plan, (batch, _, heads, _) = self.plan, x.log_w.shape
        array = jax.ShapeDtypeStruct((plan.chunks, batch, heads, plan.chunk, plan.chunk), plan.numerics.operand)
        outputs = [(each_chunk(plan, plan.chunk, plan.chunk), array)] * (2 if x.k is None else 4)
        return Scores(*self._each_chunk(wide.prepare, x, [], outputs, self.tuning.prepare_warps))

    def _scores(self, scores: Scores) -> Block:
        spec = each_chunk(self.plan, self.plan.chunk, self.plan.chunk)
        return Scores(*(None if z is None else spec for z in scores)), scores

    def _forward(self, s0: State, saved: Sequence[Block]) -> tuple[Array, ...]:
        spec = self._specs()
        scores = self._scores(self._prepare(self.x._replace(v=None)))
        outputs = [(spec.value, self.x.v), (spec.state, s0), *saved]
        return self._follow(wide.forward, self.x, [scores, (spec.state, s0)], outputs)

    def _state_backward(self, scores: Scores, dy: Values, ds: State, saved: Sequence[Block]) -> tuple[Array, ...]:
        spec = self._specs()
        needed = scores._replace(ak=None, rk=None)
        given = [self._scores(needed), (spec.value, dy), (spec.state, ds)]
        return self._follow(wide.state_backward, self.x._replace(k=None, v=None), given, [(spec.state, ds), *saved])

    def _saved(self, s: State) -> list[Block]:
        """States [n, B, H, V, K] and rows [B, T, H, V], as products round them."""
        low, spec = self.plan.numerics.operand, self._specs()
        states = jax.ShapeDtypeStruct((self.plan.chunks, *s.shape), low)
        return [(spec.states, states), (spec.value, jax.ShapeDtypeStruct(self.x.v.shape, low))]

    def _following(self) -> Plan:
        return self.plan._replace(value_tile=self.block)

    def _specs(self) -> Specs:
        """Blocks of the programs that follow time."""
        return make_specs(self._following())

    def _follow(
        self, kernel: Callable[..., None], x: OpInputs, given: Sequence[Block], outputs: Sequence[Block]
    ) -> tuple[Array, ...]:
        """One program for each head, block of values and sequence."""
        plan, (batch, _, heads, _) = self._following(), x.log_w.shape
        return call(
            partial(kernel, plan=plan), f"{kernel.__name__}_wide", (heads, plan.blocks, batch),
            [(self._specs().inputs(x), x), *given], outputs,
            Schedule(self.tuning.follow_warps, self.tuning.stages), plan.numerics.interpret,
        )  # fmt: skip

    def _each_chunk(
        self, kernel: Callable[..., None], x: OpInputs, given: Sequence[Block], outputs: Sequence[Block], warps: int
    ) -> tuple[Array, ...]:
        """One program for each chunk, head and sequence."""
        batch, _, heads, _ = x.log_w.shape
        return call(
            partial(kernel, plan=self.plan), f"{kernel.__name__}_wide", (heads, self.plan.chunks, batch),
            [(make_chunk_specs(self.plan).inputs(x), x), *given], outputs,
            Schedule(warps, 1), self.plan.numerics.interpret,
        )  # fmt: skip
