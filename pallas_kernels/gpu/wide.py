"""The GPU programs of WKV-7 for log_w down to -20: scores of all chunks at once, then one program that follows time.

`prepare`, one program for each chunk and head, computes the scores level by level (`gpu.levels`) and the inverse, all
that depends on pairs of tokens. `forward` and `state_backward`, one program for each head and block of the value axis,
follow the chunks with the state, or its gradient, in registers; between tokens and states no factor exceeds 1. They
save what `gradients`, one program for each chunk and head again, needs beside the inputs: the states and the gradients
of states at the borders of chunks, u and the gradient of what the inverse gave, dz.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.levels import (
    Factors,
    Frame,
    Sums,
    before,
    between,
    entering,
    factors_again,
    leaving,
    level_factors,
    make_frame,
    pairs,
    whole,
)
from pallas_kernels.gpu.parallel import indices, load, own_tile, rest_of_inverse, store
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref, make_tile_buffer


class Scores(NamedTuple):
    """Refs or arrays [n, ., ., C, C]: (I - A_ab)^-1 - I, and A_rb, A_ak and A_rk; the last two None without k."""

    inverse: Ref
    rb: Ref
    ak: Ref = None
    rk: Ref = None


def prepare(x: OpInputs, inverse: Ref, rb: Ref, *with_k: Ref, plan: Plan) -> None:
    """The inverse and the scores of a chunk; `with_k`, if given, takes A_ak and A_rk."""
    tile, n = own_tile(x, plan), plan.numerics
    at = make_frame(tile)
    ab, mine = scores(at, "b")
    store(rb.at[tile.i], mine)
    store(inverse.at[tile.i], rest_of_inverse(n, ab))
    if with_k:
        n.barrier()
        for ref, z in zip(with_k, scores(make_frame(tile), "k"), strict=True):
            store(ref.at[tile.i], z)


def scores(at: Frame, name: str) -> tuple[Array, Array]:
    """What a and r of every token (row) read of the b or the k of another (column), float32 [C, C]."""
    n = at.tile.plan.numerics
    row, col = indices(at.size)

    def level(i: Array, sums: Sums) -> Sums:
        factors, here = level_factors(at, i), pairs(at.size, i)
        a, stored = at.operand("a", factors.a), at.operand(name, factors.bk)
        of_a = sums[0] + where(here, n.mm_t(a, stored))
        again = factors_again(at, i, factors)
        stored = stored if again is factors else at.operand(name, again.bk)
        return of_a, sums[1] + where(here, n.mm_t(at.operand("r", again.r), stored))

    own = jnp.sum(at.load("r") * at.load(name), axis=1, keepdims=True)
    own, none = jnp.broadcast_to(own, (at.size, at.size)), jnp.zeros((at.size, at.size), jnp.float32)
    of_a, of_r = at.over_levels(level, (none, none))
    return where(at.strict, of_a), where(at.causal, of_r + where(row == col, own))


def forward(x: OpInputs, given: Scores, s0: Ref, y: Ref, s_last: Ref, *saved: Ref, plan: Plan) -> None:
    """y and the last state; `saved`, if given, takes the state before each chunk and u, row by row S_{t-1} a_t."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(i: Array, s: Array) -> Array:
        if saved:
            buffer.store_state(saved[0], s, i)
        at = make_frame(buffer.at(x, i))
        tile, (of_r, of_a), state = at.tile, entering(at), s.astype(n.operand)
        v = tile.load("v")
        known = where(at.head, n.mm_t(at.operand("a", of_a), state)) + n.mm(load(given.ak.at[i]), v)
        u = (known + n.mm(load(given.inverse.at[i]), known)).astype(n.operand)
        if saved:
            tile.put(saved[1], u, key=False)
        out = where(at.head, n.mm_t(at.operand("r", of_r), state)) + n.mm(load(given.rk.at[i]), v)
        tile.put(y, out + n.mm(load(given.rb.at[i]), u), key=False)
        leave = where(at.tail, leaving(at))
        return s * whole(at) + n.t_mm(u, at.operand("b", leave)) + n.t_mm(v, at.operand("k", leave))

    buffer.store_state(s_last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(s0)))


def state_backward(x: OpInputs, given: Scores, dy: Ref, ds_last: Ref, ds0: Ref, *saved: Ref, plan: Plan) -> None:
    """The gradient of the first state; reads neither k nor v nor any state.

    `saved`, if given, takes the gradient of the state after each chunk and dz.
    """
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(step: Array, ds: Array) -> Array:
        i = plan.chunks - 1 - step
        if saved:
            buffer.store_state(saved[0], ds, i)
        at = make_frame(buffer.at(x, i))
        tile, d = at.tile, at.tile.get(dy, key=False)
        leave = where(at.tail, leaving(at))
        du = n.t_mm(load(given.rb.at[i]), d) + n.mm_t(at.operand("b", leave), ds)
        dz = (du + n.t_mm(load(given.inverse.at[i]), du)).astype(n.operand)
        if saved:
            tile.put(saved[1], dz, key=False)
        r, a = (at.operand(name, where(at.head, z)) for name, z in zip("ra", entering(at), strict=True))
        return ds * whole(at) + n.t_mm(d, r) + n.t_mm(dz, a)

    buffer.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(ds_last)))


class Ends(NamedTuple):
    """Refs of what stands at the ends of a chunk, and of the rows in between.

    states, d_states: [n, V, K], the state before each chunk and the gradient of the one after; u, dz, dy: [T, V].
    """

    states: Ref
    d_states: Ref
    u: Ref
    dz: Ref
    dy: Ref


def gradients(x: OpInputs, given: Scores, ends: Ends, *outputs: Ref, plan: Plan) -> None:
    """`outputs` takes the gradients of (r, log_w, k, v, a, b) of a chunk."""
    n, tile = plan.numerics, own_tile(x, plan)
    out = tile.buffer.at(OpInputs(*outputs, reset=None), tile.i)
    out.store("v", value_gradient(make_frame(tile), given, ends))
    n.barrier()
    at = make_frame(tile)
    d, dz, u, v = (tile.get(ref, key=False) for ref in (ends.dy, ends.dz, ends.u, x.v))
    to = {
        name: {"r": where(at.causal, n.mm_t(d, stored)), "a": where(at.strict, n.mm_t(dz, stored))}
        for name, stored in (("b", u), ("k", v))
    }
    own = {name: _own(rows["r"]) for name, rows in to.items()}
    to = {name: {reader: z.astype(n.operand) for reader, z in rows.items()} for name, rows in to.items()}
    dlog_w = jnp.zeros((plan.chunk, plan.key_tile), jnp.float32)
    # Here and for the readers the order in which the compiler spills nothing.
    steps = writer_gradients, reader_gradients
    for step in steps[::-1] if n.operand == jnp.float32 or plan.value_tile <= plan.chunk else steps:
        n.barrier()
        dlog_w = step(make_frame(tile), to, own, ends, out, dlog_w)
    at = make_frame(tile)
    s, ds = (tile.buffer.load_state(ref, tile.i) for ref in (ends.states, ends.d_states))
    out.store("log_w", dlog_w + jnp.sum(s * ds, axis=0, keepdims=True) * whole(at))


def _own(scores: Array) -> Array:
    """The diagonal, [C, 1]: what a row has of itself."""
    row, col = indices(scores.shape[0])
    return jnp.sum(where(row == col, scores), axis=1, keepdims=True)


def value_gradient(at: Frame, given: Scores, ends: Ends) -> Array:
    """The gradient of v, [C, V]."""
    n, tile = at.tile.plan.numerics, at.tile
    d, dz = (tile.get(ref, key=False) for ref in (ends.dy, ends.dz))
    ds = tile.buffer.load_state(ends.d_states, tile.i)
    reached = n.mm_t(at.operand("k", where(at.tail, leaving(at))), ds)
    return reached + n.t_mm(load(given.rk.at[tile.i]), d) + n.t_mm(load(given.ak.at[tile.i]), dz)


def reader_gradients(
    at: Frame, to: dict[str, dict[str, Array]], own: dict[str, Array], ends: Ends, out: GridIndex, dlog_w: Array
) -> Array:
    """Stores the gradients of r and a, one after the other; returns dlog_w and what they give to it, [C, K].

    to: gradients of the scores, by writer and reader; own: those of r with b and with k on the diagonal.
    """
    n, tile = at.tile.plan.numerics, at.tile
    row, col = indices(at.size)
    readers = ("a", ends.dz), ("r", ends.dy)
    for name, ref in readers[::-1] if n.operand == jnp.float32 else readers:
        n.barrier()
        reads = name == "r"
        span, earlier = (between, row <= col) if reads else (before, row < col)
        through_state = where(at.head, n.mm(tile.get(ref, key=False), tile.buffer.load_state(ends.states, tile.i)))
        total = through_state * entering(at)[0 if reads else 1]
        dlog_w = dlog_w + at.spread(earlier.astype(jnp.float32), at.load(name) * total)
        if reads:
            total += own["b"] * at.load("b") + own["k"] * at.load("k")

        def level(i: Array, sums: Sums, name: str = name, reads: bool = reads, span=span) -> Sums:
            factors, here = level_factors(at, i), pairs(at.size, i)
            from_b, from_k = (n.mm(where(here, to[z][name]), at.operand(z, factors.bk)) for z in "bk")
            g = (from_b + from_k) * (factors.r if reads else factors.a)
            return sums[0] + g, sums[1] + at.spread(span(at.size, i, transposed=True), at.load(name) * g)

        total, dlog_w = at.over_levels(level, (total, dlog_w))
        out.store(name, total)
    return dlog_w


def writer_gradients(
    at: Frame, to: dict[str, dict[str, Array]], own: dict[str, Array], ends: Ends, out: GridIndex, dlog_w: Array
) -> Array:
    """Stores the gradients of b and k; returns dlog_w and what they give to it, [C, K]; see `reader_gradients`."""
    n, tile = at.tile.plan.numerics, at.tile
    row, col = indices(at.size)
    ds, leave = tile.buffer.load_state(ends.d_states, tile.i), leaving(at)
    total: dict[str, Array] = {}
    crossing = jnp.zeros_like(leave)
    for name, ref in (("b", ends.u), ("k", tile.refs.v)):
        total[name] = where(at.tail, n.mm(tile.get(ref, key=False), ds)) * leave
        crossing += at.load(name) * total[name]
        total[name] += own[name] * at.load("r")
    dlog_w = dlog_w + at.spread((row > col).astype(jnp.float32), crossing)

    def level(i: Array, sums: Sums) -> Sums:
        here = pairs(at.size, i)

        def gradient(name: str, factors: Factors) -> Array:
            from_r = n.t_mm(where(here, to[name]["r"]), at.operand("r", factors.r))
            return (from_r + n.t_mm(where(here, to[name]["a"]), at.operand("a", factors.a))) * factors.bk

        factors = level_factors(at, i)
        g_b = gradient("b", factors)
        g_k = gradient("k", factors_again(at, i, factors))
        through = at.spread(between(at.size, i, transposed=True), at.load("b") * g_b + at.load("k") * g_k)
        return sums[0] + g_b, sums[1] + g_k, sums[2] + through

    db, dk, dlog_w = at.over_levels(level, (total["b"], total["k"], dlog_w))
    out.store("b", db)
    out.store("k", dk)
    return dlog_w
