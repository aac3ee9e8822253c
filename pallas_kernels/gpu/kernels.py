"""The GPU programs of WKV-7: forward, full backward, and the backward of the state alone.

One program has one (batch, head) and one block of the value axis. It walks over the chunks of a sequence with the
state, or the gradient of the state, in registers. Refs are [T, N] and [V, K] blocks of the arrays in their own layout;
what lies outside of an array (ragged T, sizes that are not a power of two) is masked. Tiles are loaded where they are
used and stored as soon as they are known, which keeps few registers busy.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import (
    Numerics,
    Scale,
    Storer,
    advance,
    at_middle,
    make_loader,
    make_masks,
    make_scale,
    make_segments,
    make_storer,
    scaled,
    scores,
    unit_lower_inverse,
    where,
)
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref, make_tile_buffer


def _frame(tile: GridIndex) -> tuple[Scale, Array, Array]:
    """Decay factors, and the masks s < t and s <= t, of a chunk."""
    segments = make_segments(tile.reset())
    return make_scale(tile.load("log_w"), segments), *make_masks(tile.plan.chunk, segments)


def forward(x: OpInputs, s0: Ref, y: Ref, s_last: Ref, *saved: Ref, plan: Plan) -> None:
    """y and the last state; `saved`, if given, takes states [n, V, K] every `plan.every` chunks, and perhaps u."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(i: Array, s: Array) -> Array:
        tile = buffer.at(x, i)
        if saved:
            pl.when((i & (plan.every - 1)) == 0)(lambda: buffer.store_state(saved[0], s, plan.saved_before(i)))
        scale, strict, causal = _frame(tile)
        b, k = tile.load("b"), tile.load("k")
        storer = make_storer(n, b, k, scale)
        a, r = (make_loader(n, tile.load(z), factor, scale) for z, factor in (("a", scale.a), ("r", scale.r)))
        # All products over keys come first: in float32 their operands and the inverse do not fit in registers together.
        ab, ak = (scores(n, a, z, strict) for z in storer)
        rb, rk = (scores(n, r, z, causal) for z in storer)
        read_a, read_r = (n.mm_t(z.entering, s) for z in (a, r))
        inverse, v = unit_lower_inverse(n, ab), tile.load("v")
        u = n.fine_dot(inverse, read_a + n.mm(ak, v)).astype(n.operand)
        if len(saved) > 1:
            tile.put(saved[1], u, key=False)
        tile.put(y, read_r + n.mm(rb, u) + n.mm(rk, v), key=False)
        return advance(n, scale, b, k, u, v, s)

    buffer.store_state(s_last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(s0)))


def state_backward(x: OpInputs, dy: Ref, ds_last: Ref, ds0: Ref, *, plan: Plan) -> None:
    """The gradient of the first state; reads neither k nor v nor any state."""
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))

    def chunk(step: Array, ds: Array) -> Array:
        tile = buffer.at(x, plan.chunks - 1 - step)
        scale, strict, causal = _frame(tile)
        b = tile.load("b")
        stored = at_middle(n, b, scale)
        a = make_loader(n, tile.load("a"), scale.a, scale)
        inverse = unit_lower_inverse(n, scores(n, a, stored, strict))
        r = make_loader(n, tile.load("r"), scale.r, scale)
        rb = scores(n, r, stored, causal)
        d = tile.get(dy, key=False)
        du = n.t_mm(rb, d) + n.mm_t(scaled(b, scale.bk, scale.leave), ds)
        dz = n.fine_dot(inverse, du, (0, 0))
        return ds * scale.whole + n.t_mm(d, r.entering) + n.t_mm(dz, a.entering)

    buffer.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(ds_last)))


def backward(x: OpInputs, states: Ref, u: Ref, dy: Ref, ds_last: Ref, *outputs: Ref, plan: Plan) -> None:
    """All gradients: `outputs` takes those of (r, log_w, k, v, a, b, s0).

    Of r, log_w, k, a and b they are what this block of the value axis contributes.
    """
    n, buffer = plan.numerics, make_tile_buffer(plan, pl.program_id(1))
    grads, ds0 = OpInputs(*outputs[:6], reset=None), outputs[6]

    def state_before(i: Array) -> Array:
        """The state before chunk i, computed again from the last one saved."""

        def chunk(j: Array, s: Array) -> Array:
            tile = buffer.at(x, j)
            scale = make_scale(tile.load("log_w"), make_segments(tile.reset()))
            return advance(n, scale, tile.load("b"), tile.load("k"), tile.get(u, key=False), tile.load("v"), s)

        saved = plan.saved_before(i)
        s = buffer.load_state(states, saved)
        return s if plan.every == 1 else lax.fori_loop(saved * plan.every, i, chunk, s)

    def chunk(step: Array, ds: Array) -> Array:
        i = plan.chunks - 1 - step
        tile = buffer.at(x, i)
        out, d = buffer.at(grads, i), tile.get(dy, key=False)
        dz = value_gradients(n, tile, out, d, ds)
        n.barrier()
        return key_gradients(n, tile, out, tile.get(u, key=False), d, dz, state_before(i), ds)

    buffer.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(ds_last)))


def value_gradients(n: Numerics, x: GridIndex, out: GridIndex, dy: Array, ds: Array) -> Array:
    """The first half of a chunk's gradients: that of `v` goes to `out`, that of what the inverse gave is returned."""
    scale, strict, causal = _frame(x)
    storer = make_storer(n, x.load("b"), x.load("k"), scale)
    a = make_loader(n, x.load("a"), scale.a, scale)
    ab, ak = (scores(n, a, z, strict) for z in storer)
    n.barrier()
    r = make_loader(n, x.load("r"), scale.r, scale)
    rb, rk = (scores(n, r, z, causal) for z in storer)
    n.barrier()
    inverse = unit_lower_inverse(n, ab)
    b_out, k_out = (scaled(x.load(z), scale.bk, scale.leave) for z in "bk")
    du = n.t_mm(rb, dy) + n.mm_t(b_out, ds)
    dz = n.fine_dot(inverse, du, (0, 0)).astype(n.operand)
    out.store("v", n.t_mm(rk, dy) + n.mm_t(k_out, ds) + n.t_mm(ak, dz))
    return dz


def key_gradients(
    n: Numerics, x: GridIndex, out: GridIndex, u: Array, dy: Array, dz: Array, s: Array, ds: Array
) -> Array:
    """The second half: the gradient of the state before a chunk from that of the state after it; the rest to `out`.

    Everything is loaded and scaled again, which is cheaper than the registers to keep it. The formulas are those of
    `chunked.math.gradients`.
    """
    scale, strict, causal = _frame(x)
    storer, v = make_storer(n, x.load("b"), x.load("k"), scale), x.load("v")
    r = make_loader(n, x.load("r"), scale.r, scale)
    ds_first = ds * scale.whole + n.t_mm(dy, r.entering)
    d_rb, d_rk, g_r = _through_loader(n, dy, u, v, s, scale, storer, causal)
    out.store("r", g_r * scale.r)
    n.barrier()
    a = make_loader(n, x.load("a"), scale.a, scale)
    ds_first = ds_first + n.t_mm(dz, a.entering)
    d_ab, d_ak, g_a = _through_loader(n, dz, u, v, s, scale, storer, strict)
    out.store("a", g_a * scale.a)
    at_end = jnp.sum(s * ds, axis=0, keepdims=True) * scale.whole
    through_a = _product(a.mid, g_a)
    terms = _product(r.mid, g_r) + through_a
    for name, mid, stored, d_a, d_r in (("b", storer.b, u, d_ab, d_rb), ("k", storer.k, v, d_ak, d_rk)):
        leaving = n.mm(stored, ds) * scale.leave
        g = n.score_dot(d_a, a.mid, (0, 0)) + n.score_dot(d_r, r.mid, (0, 0)) + leaving
        out.store(name, g * scale.bk)
        at_end = at_end + jnp.sum(_product(mid, leaving), axis=0, keepdims=True)
        terms = terms - _product(mid, g)
    later = jnp.sum(terms, axis=0, keepdims=True) - lax.cumsum(terms, axis=0) + terms
    out.store("log_w", later - through_a + at_end)
    return ds_first


def _through_loader(
    n: Numerics, d: Array, u: Array, v: Array, s: Array, scale: Scale, storer: Storer, mask: Array
) -> tuple[Array, Array, Array]:
    """Gradients of a loader's scores with b and with k, and of its vector relative to the middle, from that of what it
    loaded, d [C, V]."""
    d_b, d_k = where(mask, n.mm_t(d, u)), where(mask, n.mm_t(d, v))
    return d_b, d_k, n.score_dot(d_b, storer.b) + n.score_dot(d_k, storer.k) + n.mm(d, s) * scale.enter


def _product(rounded: Array, x: Array) -> Array:
    """In float32, with the operand that the matrix products used."""
    return rounded.astype(jnp.float32) * x
