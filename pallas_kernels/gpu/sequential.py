"""The forward and the gradient of the state alone in chunks of 32 tokens, each in one kernel that moves no byte twice.

One program has a head and a block of the value axis and follows the chunks; the terms are those of
`pallas_kernels.gpu.parallel`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.parallel import Chunk, indices, make_chunk, middle_row, rest_of_inverse, row_sums
from pallas_kernels.gpu.tiles import Plan, Ref, make_tile_buffer


class Decays(NamedTuple):
    """Decays of a chunk relative to its middle, computed where they are used, which spares registers.

    c: cumulative sum of log_w relative to the middle, float32 [C, K].
    """

    at: Chunk
    c: Array

    def factor(self, name: str) -> Array:
        """Computes the decay of r, k, a or b relative to the middle, float32 [C, K]."""
        if name == "a":
            return jnp.exp(self.c - self.at.tile.load("log_w").astype(jnp.float32))
        return jnp.exp(self.c if name == "r" else -self.c)

    def operand(self, name: str) -> Array:
        """Loads r, k, a or b, scaled to the middle and rounded for products."""
        return self.at.n.pinned(self.at.tile.load(name).astype(jnp.float32) * self.factor(name))

    def ends(self) -> tuple[Array, Array, Array]:
        """(enter, leave, whole), float32 [1, K]."""
        log_w = self.at.tile.load("log_w").astype(jnp.float32)
        row = lax.broadcasted_iota(jnp.int32, log_w.shape, 0)
        middle = jnp.sum(where(row <= middle_row(self.at.tile.plan.chunk), log_w), axis=0, keepdims=True)
        end = jnp.sum(log_w, axis=0, keepdims=True)
        return jnp.exp(middle), jnp.exp(end - middle), where(self.at.keep, jnp.exp(end))


def make_decays(at: Chunk) -> Decays:
    """Returns the decays of a chunk."""
    plan = at.tile.plan
    log_w, (row, col) = at.tile.load("log_w"), indices(plan.chunk)
    up_to = (col <= row).astype(jnp.float32) - (col <= middle_row(plan.chunk)).astype(jnp.float32)
    return Decays(at, row_sums(at.n, up_to, log_w))


def forward(x: OpInputs, s0: Ref, y: Ref, s_last: Ref, *states: Ref, plan: Plan) -> None:
    """y and the last state; `states`, if given, takes the state before each chunk, scaled to its middle."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(i: Array, s: Array) -> Array:
        at = make_chunk(buffer.at(x, i))
        decays = make_decays(at)
        enter, leave, whole = decays.ends()
        a, b = decays.operand("a"), decays.operand("b")
        rest = rest_of_inverse(n, where(at.strict, n.mm_t(a, b))).astype(n.operand)
        k, v, inward = decays.operand("k"), at.tile.load("v"), (s * enter).astype(n.operand)
        if states:
            buffer.store_state(states[0], inward, i)
        known = where(at.head, n.mm_t(a, inward)) + n.mm(at.scores(a, k, at.strict), v)
        u = (known + n.mm(rest, known)).astype(n.operand)
        r = decays.operand("r")
        out = where(at.head, n.mm_t(r, inward)) + n.mm(at.scores(r, k, at.causal), v)
        at.tile.put(y, out + n.mm(at.scores(r, b, at.causal), u), key=False)
        return s * whole + (n.t_mm(u, where(at.tail, b)) + n.t_mm(v, where(at.tail, k))) * leave

    buffer.store_state(s_last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(s0)))


def state_backward(x: OpInputs, dy: Ref, ds_last: Ref, ds0: Ref, *, plan: Plan) -> None:
    """The gradient of the first state; reads neither k nor v nor any state."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(step: Array, ds: Array) -> Array:
        at = make_chunk(buffer.at(x, plan.chunks - 1 - step))
        decays = make_decays(at)
        enter, leave, whole = decays.ends()
        a, b = decays.operand("a"), decays.operand("b")
        rest = rest_of_inverse(n, where(at.strict, n.mm_t(a, b))).astype(n.operand)
        r, d = decays.operand("r"), at.tile.get(dy, key=False)
        du = n.t_mm(at.scores(r, b, at.causal), d) + where(at.tail, n.mm_t(b, ds * leave))
        dz = du + n.t_mm(rest, du)
        return ds * whole + (n.t_mm(d, where(at.head, r)) + n.t_mm(dz, where(at.head, a))) * enter

    buffer.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(ds_last)))
