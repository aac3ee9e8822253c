"""How the GPU programs are launched: their form, tile sizes, residuals."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pallas_kernels import decode
from pallas_kernels.chunked.layout import OpInputs, Saved
from pallas_kernels.gpu import divided, kernels, sequential, wide_launch
from pallas_kernels.gpu.blocks import Block, Schedule, call, make_specs
from pallas_kernels.gpu.chunk import Numerics
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import BFLOAT16, FLOAT32, FLOAT32_NARROW, Divided, Form, Tuning, Wide, before_hopper
from pallas_kernels.support import only_on

MULTIPROCESSORS = 128
"""Below this many programs the value axis is divided; an A100 has 108 multiprocessors, an H100 132."""
LONG = 256
"""Tokens from which on dividing over time pays where there are few heads."""

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]


class Launch(NamedTuple):
    """The four functions that `chunked.make_op` asks for. tuning: None for `BFLOAT16` or `FLOAT32`, by the inputs.

    interpret: run the kernels on a CPU; otherwise the program compiles for a GPU only. wide: for log_w down to -20.
    """

    tuning: Tuning | None = None
    interpret: bool = False
    wide: bool = False

    def forward(self, x: OpInputs, s0: State) -> tuple[Values, State]:
        """(y, s_T); a single token is a step of decoding."""
        if x.v.shape[1] == 1:
            return decode.forward(x, s0)
        if self.wide:
            return self.strong(x).forward(s0)
        if self.form("forward", x) == "divided":
            y, s_last, _ = self.divided(x).forward(s0)
            return y, s_last
        y, s_last, *_ = self._forward(x, s0, saved=0)
        return y, s_last

    def forward_saving(self, x: OpInputs, s0: State) -> tuple[Values, State, Saved]:
        """(y, s_T, what the full backward needs): for bfloat16 inputs, states and u in bfloat16.

        A backward that is divided over time computes u again, so none is saved.
        """
        if self.wide:
            y, s_last, states, u = self.strong(x).forward_saving(s0)
            return y, s_last, Saved(x, states, u)
        batch, _, heads, value = x.v.shape
        none = jnp.zeros((batch, 0, heads, value), self._operand(x))
        divided = self.form("backward", x) == "divided"
        if divided and self.form("forward", x) == "divided":
            y, s_last, states = self.divided(x).forward(s0)
            return y, s_last, Saved(x, states, none)
        y, s_last, states, *u = self._forward(x, s0, saved=1 if divided else 2)
        return y, s_last, Saved(x, states, u[0] if u else none)

    def _forward(self, x: OpInputs, s0: State, saved: int) -> tuple[Array, ...]:
        """(y, s_T) and as many as are to be saved of the states and u."""
        sequential_form = self.form("forward", x) == "sequential"
        plan = self.sequential_plan(x) if sequential_form else self.small_plan(x)
        spec = make_specs(plan)
        states = jax.ShapeDtypeStruct((plan.saved_states, *s0.shape), plan.numerics.operand)
        u = jax.ShapeDtypeStruct(x.v.shape, plan.numerics.operand)
        outputs = [(spec.value, x.v), (spec.state, s0), *[(spec.states, states), (spec.value, u)][:saved]]
        kernel = sequential.forward if sequential_form else kernels.forward
        return self._run(kernel, plan, x, [(spec.state, s0)], outputs)

    def backward(self, saved: Saved, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
        x = saved.inputs
        if self.wide:
            return self.strong(x).backward(saved.states, saved.u, dy, ds)
        if self.form("backward", x) == "divided":
            return self.divided(x).backward(saved.states, dy, ds)
        plan = self.small_plan(x)
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
        if self.wide:
            return self.strong(x).state_backward(dy, ds)
        form = self.form("state_backward", x)
        if form == "divided":
            return self.divided(x).state_backward(dy, ds)
        plan = self.sequential_plan(x) if form == "sequential" else self.small_plan(x)
        if plan.key_tile < plan.chunk:
            plan = plan.wide_keys()
        kernel = sequential.state_backward if form == "sequential" else kernels.state_backward
        spec = make_specs(plan)
        inputs = [(spec.value, dy), (spec.state, ds)]
        used = x._replace(k=None, v=None)
        return self._run(kernel, plan, used, inputs, [(spec.state, ds)])[0]

    def form(self, rule: str, x: OpInputs) -> Form:
        """Returns the form of the kernels of `forward`, `backward` or `state_backward`.

        float32 has the small one alone. In bfloat16 the backward is divided; the others are where there are fewer heads
        than a GPU has multiprocessors. On Ampere what would spill decides: a divided forward would, and so would a
        sequential state_backward with resets.
        """
        tuning, (batch, length, heads, _) = self.tuned(x), x.r.shape
        form = tuning.form or ("sequential" if self._operand(x) == jnp.bfloat16 else "small")
        if form == "small" or tuning.checkpoint != tuning.divided.chunk:
            return "small"
        few = batch * heads < MULTIPROCESSORS and length >= LONG
        if tuning.form is None and before_hopper() and rule != "backward":
            return "divided" if rule == "state_backward" and (few or x.reset is not None) else form
        return "divided" if rule == "backward" or (tuning.form is None and few) else form

    def divided(self, x: OpInputs) -> divided.Kernels:
        """Returns the passes that are divided over time."""
        plan, tuning = self.divided_plan(x)
        return divided.Kernels(self._bound(x), plan, tuning)

    def strong(self, x: OpInputs) -> wide_launch.Kernels:
        """Returns the passes for log_w down to -20."""
        return wide_launch.Kernels(self._bound(x), *self.wide_plan(x))

    def wide_plan(self, x: OpInputs) -> tuple[Plan, Wide, int]:
        """Returns the sizes and choices of these passes, and the most rows of the state that follow time together."""
        tuning, (batch, _, heads, value) = self.tuned(x).wide, x.v.shape
        plan = self.plan(x)._replace(chunk=tuning.chunk, every=1, value_tile=tile(value))
        return plan, tuning, min(value_tile(batch * heads, value), tuning.block, 32 if before_hopper() else 64)

    def divided_plan(self, x: OpInputs) -> tuple[Plan, Divided]:
        """Returns the sizes and choices of these passes."""
        return self._larger_chunks(x)._replace(value_tile=tile(x.v.shape[3])), self.tuned(x).divided

    def sequential_plan(self, x: OpInputs) -> Plan:
        """Returns the sizes of the launch for kernels in the larger chunks that follow time."""
        plan = self._larger_chunks(x)
        return plan if x.reset is None else plan.wide_keys()

    def small_plan(self, x: OpInputs) -> Plan:
        """Returns the sizes of the launch for kernels in chunks of 16 tokens."""
        return self.plan(x).wide_keys()

    def _larger_chunks(self, x: OpInputs) -> Plan:
        return self.plan(x)._replace(chunk=self.tuned(x).divided.chunk, every=1)

    def _operand(self, x: OpInputs) -> np.dtype:
        bf16 = all(z.dtype == jnp.bfloat16 for z in (x.r, x.k, x.v, x.a, x.b) if z is not None)
        return jnp.dtype(jnp.bfloat16 if bf16 else jnp.float32)

    def tuned(self, x: OpInputs) -> Tuning:
        """Returns the tuning for these inputs."""
        if self.tuning:
            return self.tuning
        if self._operand(x) == jnp.bfloat16:
            return BFLOAT16
        return FLOAT32 if x.r.shape[3] > 32 else FLOAT32_NARROW

    def plan(self, x: OpInputs) -> Plan:
        """Returns the sizes of the launch for these inputs."""
        batch, length, heads, key = x.r.shape
        value, tuning = x.v.shape[3], self.tuned(x)
        return Plan(
            length=length,
            key=key,
            value=value,
            key_tile=tile(key),
            value_tile=min(value_tile(batch * heads, value), tuning.value_block, 32 if before_hopper() else 64),
            chunk=tuning.chunk,
            every=tuning.checkpoint // tuning.chunk,
            numerics=Numerics(self._operand(x), self.interpret),
        )

    def _bound(self, x: OpInputs) -> OpInputs:
        """The inputs as kernels take them, in a program for a GPU only unless interpreted."""
        if x.reset is not None:
            x = x._replace(reset=x.reset.astype(jnp.int32))
        return x if self.interpret else x._replace(log_w=only_on(x.log_w, "cuda", "gpu"))

    def _run(
        self, kernel: Callable[..., None], plan: Plan, x: OpInputs, inputs: Sequence[Block], outputs: Sequence[Block]
    ) -> tuple[Array, ...]:
        """One program per head, block of values and sequence; refs in the order x, inputs, outputs."""
        tuning, batch, heads = self.tuned(x), x.r.shape[0], x.r.shape[2]
        schedule = Schedule(tuning.warps, tuning.stages)
        if kernel is kernels.backward:
            schedule = Schedule(tuning.backward_warps, tuning.backward_stages)
        if kernel in (sequential.forward, sequential.state_backward) and x.reset is not None and not before_hopper():
            schedule = schedule._replace(warps=tuning.divided.reset_warps)
        x = self._bound(x)
        return call(
            functools.partial(kernel, plan=plan), kernel.__name__, (heads, plan.blocks, batch),
            [(make_specs(plan).inputs(x), x), *inputs], outputs, schedule, self.interpret,
        )  # fmt: skip


def tile(size: int) -> int:
    """The power of two, at least 16, that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


def value_tile(heads: int, value: int) -> int:
    """Rows of the state per program: all, unless too few heads (times sequences) would leave the GPU idle."""
    size = tile(value)
    while size > 16 and 2 * heads <= MULTIPROCESSORS:
        size, heads = size // 2, 2 * heads
    return size
