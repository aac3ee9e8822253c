"""The forward and the gradient of the state alone in chunks of 32 tokens, each in one kernel that moves no byte twice.

One program has a head and a block of the value axis and follows the chunks; the terms are those of
`pallas_kernels.gpu.parallel`.
"""

from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.parallel import make_chunk, make_factors, rest_of_inverse
from pallas_kernels.gpu.tiles import Plan, Ref, make_tile_buffer


def forward(x: OpInputs, s0: Ref, y: Ref, s_last: Ref, *states: Ref, plan: Plan) -> None:
    """y and the last state; `states`, if given, takes the state before each chunk."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(i: Array, s: Array) -> Array:
        if states:
            buffer.store_state(states[0], s, i)
        at = make_chunk(buffer.at(x, i))
        enter, leave, whole = make_factors(at)
        a, b = at.operand("a"), at.operand("b")
        rest = rest_of_inverse(n, where(at.strict, n.mm_t(a, b))).astype(n.operand)
        k, v, inward = at.operand("k"), at.tile.load("v"), (s * enter).astype(n.operand)
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
