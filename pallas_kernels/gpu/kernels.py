"""The GPU programs of WKV-7: forward, full backward, and the backward of the state alone.

One program has one (batch, head) and one block of the value axis. It walks over the chunks of its row with the state,
or the gradient of the state, in registers. Refs are [T, N] and [V, K] blocks of the arrays in their own layout; what
lies outside of an array (ragged T, sizes that are no power of two) is masked. Tiles are loaded where they are used and
stored as soon as they are known, which keeps few registers busy.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import (
    Numerics,
    Scale,
    Writers,
    advance,
    make_masks,
    make_reader,
    make_scale,
    make_segments,
    make_vectors,
    make_writers,
    scaled,
    unit_lower_inverse,
    where,
)
from pallas_kernels.gpu.tiles import Here, Plan, Ref, make_window


def _frame(here: Here) -> tuple[Scale, Array, Array]:
    """Decay factors, and the masks s < t and s <= t, of a chunk."""
    segments = make_segments(here.reset())
    return make_scale(here.load("log_w"), segments), *make_masks(here.plan.chunk, segments)


def forward(x: OpInputs, s0: Ref, y: Ref, s_last: Ref, *saved: Ref, plan: Plan) -> None:
    """y and the last state; `saved`, if given, takes states [n, V, K] every `plan.every` chunks, and u."""
    n, window = plan.numerics, make_window(plan)

    def chunk(i: Array, s: Array) -> Array:
        here = window.at(x, i)
        if saved:
            pl.when((i & (plan.every - 1)) == 0)(lambda: window.store_state(saved[0].at[plan.saved_before(i)], s))
        scale, strict, causal = _frame(here)
        b, k = here.load("b"), here.load("k")
        writers = make_writers(n, b, k, scale)
        a = make_reader(n, here.load("a"), scale.a, scale, writers, strict)
        inverse, v = unit_lower_inverse(n, a.b), here.load("v")
        u = n.fine_dot(inverse, n.mm_t(a.entering, s) + n.mm(a.k, v)).astype(n.operand)
        if saved:
            here.put(saved[1], u, key=False)
        r = make_reader(n, here.load("r"), scale.r, scale, writers, causal)
        here.put(y, n.mm_t(r.entering, s) + n.mm(r.b, u) + n.mm(r.k, v), key=False)
        return advance(n, scale, b, k, u, v, s)

    window.store_state(s_last, lax.fori_loop(0, plan.chunks, chunk, window.load_state(s0)))


def state_backward(x: OpInputs, dy: Ref, ds_last: Ref, ds0: Ref, *, plan: Plan) -> None:
    """The gradient of the first state; reads neither k nor v nor any state."""
    n, window = plan.numerics, make_window(plan)

    def chunk(step: Array, ds: Array) -> Array:
        here = window.at(x, plan.chunks - 1 - step)
        scale, strict, causal = _frame(here)
        b = here.load("b")
        writers = make_writers(n, b, None, scale)
        a = make_reader(n, here.load("a"), scale.a, scale, writers, strict)
        inverse = unit_lower_inverse(n, a.b)
        r = make_reader(n, here.load("r"), scale.r, scale, writers, causal)
        d = here.get(dy, key=False)
        du = n.t_mm(r.b, d) + n.mm_t(scaled(b, scale.bk, scale.leave), ds)
        dz = n.fine_dot(inverse, du, (0, 0))
        return ds * scale.whole + n.t_mm(d, r.entering) + n.t_mm(dz, a.entering)

    window.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, window.load_state(ds_last)))


def backward(x: OpInputs, states: Ref, u: Ref, dy: Ref, ds_last: Ref, *outputs: Ref, plan: Plan) -> None:
    """All gradients: `outputs` takes those of (r, log_w, k, v, a, b, s0).

    Of r, log_w, k, a and b they are what this block of the value axis contributes.
    """
    n, window = plan.numerics, make_window(plan)
    grads, ds0 = OpInputs(*outputs[:6], reset=None), outputs[6]

    def state_before(i: Array) -> Array:
        """The state before chunk i, computed again from the last one saved."""

        def chunk(j: Array, s: Array) -> Array:
            here = window.at(x, j)
            scale = make_scale(here.load("log_w"), make_segments(here.reset()))
            return advance(n, scale, here.load("b"), here.load("k"), here.get(u, key=False), here.load("v"), s)

        saved = plan.saved_before(i)
        s = window.load_state(states.at[saved])
        return s if plan.every == 1 else lax.fori_loop(saved * plan.every, i, chunk, s)

    def chunk(step: Array, ds: Array) -> Array:
        i = plan.chunks - 1 - step
        here = window.at(x, i)
        out, d = window.at(grads, i), here.get(dy, key=False)
        dz = value_gradients(n, here, out, d, ds)
        n.barrier()
        return key_gradients(n, here, out, here.get(u, key=False), d, dz, state_before(i), ds)

    window.store_state(ds0, lax.fori_loop(0, plan.chunks, chunk, window.load_state(ds_last)))


def value_gradients(n: Numerics, x: Here, out: Here, dy: Array, ds: Array) -> Array:
    """The first half of a chunk's gradients: that of `v` goes to `out`, that of what the inverse gave is returned."""
    scale, strict, causal = _frame(x)
    writers = make_writers(n, x.load("b"), x.load("k"), scale)
    a = make_reader(n, x.load("a"), scale.a, scale, writers, strict)
    n.barrier()
    r = make_reader(n, x.load("r"), scale.r, scale, writers, causal)
    n.barrier()
    inverse = unit_lower_inverse(n, a.b)
    b_out, k_out = (scaled(x.load(z), scale.bk, scale.leave) for z in "bk")
    du = n.t_mm(r.b, dy) + n.mm_t(b_out, ds)
    dz = n.fine_dot(inverse, du, (0, 0)).astype(n.operand)
    out.store("v", n.t_mm(r.k, dy) + n.mm_t(k_out, ds) + n.t_mm(a.k, dz))
    return dz


def key_gradients(n: Numerics, x: Here, out: Here, u: Array, dy: Array, dz: Array, s: Array, ds: Array) -> Array:
    """The second half: the gradient of the state before a chunk from that of the state after it; the rest to `out`.

    Everything is loaded and scaled again, which is cheaper than the registers to keep it. The formulas are those of
    `chunk_math.gradients`.
    """
    scale, strict, causal = _frame(x)
    writers, v = make_writers(n, x.load("b"), x.load("k"), scale), x.load("v")
    a, r = make_vectors(n, x.load("a"), scale.a, scale), make_vectors(n, x.load("r"), scale.r, scale)
    ds_first = ds * scale.whole + n.t_mm(dy, r.entering) + n.t_mm(dz, a.entering)
    at_end = jnp.sum(s * ds, axis=0, keepdims=True) * scale.whole
    d_rb, d_rk, g_r = _through_reader(n, dy, u, v, s, scale, writers, causal)
    out.store("r", g_r * scale.r)
    d_ab, d_ak, g_a = _through_reader(n, dz, u, v, s, scale, writers, strict)
    out.store("a", g_a * scale.a)
    through_a = _product(a.mid, g_a)
    terms = _product(r.mid, g_r) + through_a
    for name, mid, wrote, d_a, d_r in (("b", writers.b, u, d_ab, d_rb), ("k", writers.k, v, d_ak, d_rk)):
        leaving = n.mm(wrote, ds) * scale.leave
        g = n.score_dot(d_a, a.mid, (0, 0)) + n.score_dot(d_r, r.mid, (0, 0)) + leaving
        out.store(name, g * scale.bk)
        at_end = at_end + jnp.sum(_product(mid, leaving), axis=0, keepdims=True)
        terms = terms - _product(mid, g)
    later = jnp.sum(terms, axis=0, keepdims=True) - lax.cumsum(terms, axis=0) + terms
    out.store("log_w", later - through_a + at_end)
    return ds_first


def _through_reader(
    n: Numerics, d: Array, u: Array, v: Array, s: Array, scale: Scale, w: Writers, mask: Array
) -> tuple[Array, Array, Array]:
    """Gradients of a reader's scores with b and with k, and of its vector relative to the middle, from that of what it
    read, d [C, V]."""
    d_b, d_k = where(mask, n.mm_t(d, u)), where(mask, n.mm_t(d, v))
    return d_b, d_k, n.score_dot(d_b, w.b) + n.score_dot(d_k, w.k) + n.mm(d, s) * scale.enter


def _product(rounded: Array, x: Array) -> Array:
    """In float32, with the operand that the matrix products used."""
    return rounded.astype(jnp.float32) * x
