"""The forward and the gradient of the state alone in chunks of 32 tokens, each in one kernel that moves no byte twice.

One program has a head and a block of the value axis and follows the chunks; the terms are those of
`pallas_kernels.gpu.parallel`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import Numerics, Segments, make_masks, make_segments, where
from pallas_kernels.gpu.parallel import indices, middle_row, rest_of_inverse, row_sums
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref, make_tile_buffer


class Chunk(NamedTuple):
    """What both programs begin a chunk with.

    c: cumulative sum of log_w relative to the middle, float32 [C, K]; strict, causal: which token (row) sees which
    (column); head, tail: [C, 1], the tokens that see the state before the chunk, and those that reach the one after it,
    None for all; segments: None without resets. Factors are computed where they are used, which spares registers.
    """

    n: Numerics
    tile: GridIndex
    c: Array
    strict: Array
    causal: Array
    head: Array | None
    tail: Array | None
    segments: Segments | None

    def factor(self, name: str) -> Array:
        """Computes the decay of r, k, a or b relative to the middle, float32 [C, K]."""
        if name == "a":
            return jnp.exp(self.c - self.tile.load("log_w").astype(jnp.float32))
        return jnp.exp(self.c if name == "r" else -self.c)

    def operand(self, name: str) -> Array:
        """Loads r, k, a or b, scaled to the middle and rounded for products."""
        return self.n.pinned(self.tile.load(name).astype(jnp.float32) * self.factor(name))

    def scores(self, rows: Array, columns: Array, mask: Array) -> Array:
        """rows columns' under the mask, rounded for products."""
        return self.n.pinned(where(mask, self.n.mm_t(rows, columns)))


def make_chunk(tile: GridIndex) -> Chunk:
    """Returns what a chunk begins with."""
    plan = tile.plan
    n = plan.numerics
    segments = make_segments(tile.reset())
    strict, causal = make_masks(plan.chunk, segments)
    log_w, (row, col) = tile.load("log_w"), indices(plan.chunk)
    up_to = (col <= row).astype(jnp.float32) - (col <= middle_row(plan)).astype(jnp.float32)
    c = row_sums(n, up_to, log_w)
    head = tail = None
    if segments is not None:
        head, tail = (segments.number == 0)[:, None], (segments.number == segments.last)[:, None]
    return Chunk(n, tile, c, strict, causal, head, tail, segments)


def make_factors(at: Chunk) -> tuple[Array, Array, Array]:
    """(enter, leave, whole), float32 [1, K]."""
    log_w = at.tile.load("log_w").astype(jnp.float32)
    row = lax.broadcasted_iota(jnp.int32, log_w.shape, 0)
    middle = jnp.sum(where(row <= middle_row(at.tile.plan), log_w), axis=0, keepdims=True)
    end = jnp.sum(log_w, axis=0, keepdims=True)
    keep = None if at.segments is None else at.segments.last == 0
    return jnp.exp(middle), jnp.exp(end - middle), where(keep, jnp.exp(end))


def forward(x: OpInputs, s0: Ref, y: Ref, s_last: Ref, *states: Ref, plan: Plan) -> None:
    """y and the last state; `states`, if given, takes the state before each chunk, scaled to its middle."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(i: Array, s: Array) -> Array:
        at = make_chunk(buffer.at(x, i))
        enter, leave, whole = make_factors(at)
        a, b = at.operand("a"), at.operand("b")
        rest = rest_of_inverse(n, where(at.strict, n.mm_t(a, b))).astype(n.operand)
        k, v, inward = at.operand("k"), at.tile.load("v"), (s * enter).astype(n.operand)
        if states:
            buffer.store_state(states[0], inward, i)
        known = where(at.head, n.mm_t(a, inward)) + n.mm(at.scores(a, k, at.strict), v)
        u = (known + n.mm(rest, known)).astype(n.operand)
        r = at.operand("r")
        out = where(at.head, n.mm_t(r, inward)) + n.mm(at.scores(r, k, at.causal), v)
        at.tile.put(y, out + n.mm(at.scores(r, b, at.causal), u), key=False)
        return s * whole + (n.t_mm(u, where(at.tail, b)) + n.t_mm(v, where(at.tail, k))) * leave

    buffer.store_state(s_last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(s0)))


def state_backward(x: OpInputs, dy: Ref, ds_last: Ref, ds0: Ref, *, plan: Plan) -> None:
    """The gradient of the first state; reads neither k nor v nor any state."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(step: Array, ds: Array) -> Array:
        at = make_chunk(buffer.at(x, plan.chunks - 1 - step))
        enter, leave, whole = make_factors(at)
        a, b = at.operand("a"), at.operand("b")
        rest = rest_of_inverse(n, where(at.strict, n.mm_t(a, b))).astype(n.operand)
        r, d = at.operand("r"), at.tile.get(dy, key=False)
        du = n.t_mm(at.scores(r, b, at.causal), d) + where(at.tail, n.mm_t(b, ds * leave))
        dz = du + n.t_mm(rest, du)
        return ds * whole + (n.t_mm(d, where(at.head, r)) + n.t_mm(dz, where(at.head, a))) * enter

    buffer.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(ds_last)))
