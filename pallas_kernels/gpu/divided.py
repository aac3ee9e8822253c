"""Launches of the kernels that are divided over time: a program for each chunk, and a scan of the states between."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Float

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu import parallel
from pallas_kernels.gpu.blocks import Block, Schedule, Specs, call, each_chunk, make_chunk_specs, make_specs
from pallas_kernels.gpu.gradients import gradients
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import Divided, before_hopper

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]
States = Float[Array, "n B H V K"]


class Prepared(NamedTuple):
    """What `parallel` prepares for each chunk: (I - A_ab)^-1 - I, how a state changes, and factors of decay."""

    inverse: Float[Array, "n B H C C"]
    step: Float[Array, "n B H K K"]
    change: States
    factors: Float[Array, "n B H 3 K"]


class Kernels(NamedTuple):
    """The passes of the op over inputs x. plan: of chunks of `tuning.chunk` tokens, of all rows of the state."""

    x: OpInputs
    plan: Plan
    tuning: Divided

    def forward(self, s0: State) -> tuple[Values, State, States]:
        """(y, s_T, the state before each chunk, scaled to its middle)."""
        x, warps = self.x, self.tuning.output_warps
        prepared = self._prepare(parallel.prepare_forward, x._replace(r=None), [])
        s_last, states = self._scan("states", prepared, s0, reverse=False)
        given = [self._inverse(prepared), self._states(states)]
        (y,) = self._each_chunk(parallel.outputs, x, given, [(self._specs().value, x.v)], warps)
        return y, s_last, states

    def backward(self, states: States, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0) from those of y and s_T and the states that `forward` gives."""
        prepared = self._prepare_backward(dy)
        ds0, d_states = self._scan("state_gradients", prepared, ds, reverse=True)
        return *self._replace(plan=self.plan.wide_keys())._gradients(prepared, states, d_states, dy), ds0

    def state_backward(self, dy: Values, ds: State) -> State:
        """The gradient of s0 alone; reads neither k nor v nor any state."""
        return self._scan("state_gradient", self._prepare_backward(dy), ds, reverse=True, save=False)[0]

    def _gradients(self, prepared: Prepared, states: States, d_states: States, dy: Values) -> tuple[Array, ...]:
        x, specs = self.x, self._specs()
        given = [self._inverse(prepared), self._states(states), self._states(d_states), (specs.value, dy)]
        wanted = [*zip(specs.inputs(x)[:6], x[:6], strict=True)]
        return self._each_chunk(gradients, x, given, wanted, self.tuning.gradient_warps)

    def _prepare_backward(self, dy: Values) -> Prepared:
        used = self.x._replace(k=None, v=None)
        return self._prepare(parallel.prepare_backward, used, [(self._specs().value, dy)])

    def _prepare(self, kernel: Callable[..., None], x: OpInputs, given: Sequence[Block]) -> Prepared:
        plan, low, size, factors = self.plan, self.plan.numerics.operand, self.plan.chunk, parallel.FACTORS
        key, value, wide, high = plan.key, plan.value, plan.key_tile, plan.value_tile
        sizes = ((size, size, low), (key, key, low), (value, key, low), (factors, key, jnp.float32))
        arrays = [self._array(*z) for z in sizes]
        tiles = ((size, size), (wide, wide), (high, wide), (parallel.SMALLEST, wide))
        outputs = [(each_chunk(plan, *tile), array) for tile, array in zip(tiles, arrays, strict=True)]
        return Prepared(*self._each_chunk(kernel, x, given, outputs, self.tuning.prepare_warps))

    def _array(self, rows: int, columns: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        batch, _, heads, _ = self.x.log_w.shape
        return jax.ShapeDtypeStruct((self.plan.chunks, batch, heads, rows, columns), dtype)

    def _inverse(self, prepared: Prepared) -> Block:
        return each_chunk(self.plan, self.plan.chunk, self.plan.chunk), prepared.inverse

    def _factors(self, prepared: Prepared) -> Block:
        return each_chunk(self.plan, parallel.FACTORS, self.plan.key_tile), prepared.factors

    def _states(self, states: States) -> Block:
        return each_chunk(self.plan, self.plan.value_tile, self.plan.key_tile), states

    def _specs(self) -> Specs:
        return make_chunk_specs(self.plan)

    def _each_chunk(
        self,
        kernel: Callable[..., None],
        x: OpInputs,
        given: Sequence[Block],
        outputs: Sequence[Block],
        warps: int,
    ) -> tuple[Array, ...]:
        """One program for each chunk, head and sequence; given: what it reads beside x and the matrices of
        `make_weights`."""
        batch, _, heads, _ = x.log_w.shape
        weights = parallel.make_weights(self.plan.chunk, self.plan.numerics.operand)
        shared: Block = pl.BlockSpec(weights.shape, lambda h, i, b: (0, 0, 0)), weights
        return call(
            partial(kernel, plan=self.plan), kernel.__name__, (heads, self.plan.chunks, batch),
            [(self._specs().inputs(x), x), shared, *given], outputs, Schedule(warps, 1), self.plan.numerics.interpret,
        )  # fmt: skip

    def _scan(self, name: str, prepared: Prepared, s: State, *, reverse: bool, save: bool = True) -> tuple[Array, ...]:
        """The state after the last chunk, or before the first with `reverse`, and if saved those in between.

        On Ampere a change that is moved by a product would leave shared memory for fewer programs than one wave.
        """
        plan = self.plan._replace(value_tile=min(self.plan.value_tile, self.tuning.block))
        spec, batch, heads = make_specs(plan), *s.shape[:2]
        given = [
            (each_chunk(plan, plan.key_tile, plan.key_tile), prepared.step), (spec.states, prepared.change),
            self._factors(prepared), (spec.state, s),
        ]  # fmt: skip
        outputs: list[Block] = [(spec.state, s)]
        if save:
            outputs.append((spec.states, self._array(plan.value, plan.key, plan.numerics.operand)))
        kernel = partial(parallel.scan, plan=plan, reverse=reverse, moved=not before_hopper())
        return call(
            kernel, name, (heads, plan.blocks, batch), given, outputs,
            Schedule(self.tuning.scan_warps, self.tuning.stages), plan.numerics.interpret,
        )  # fmt: skip
