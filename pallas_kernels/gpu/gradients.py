"""All gradients of one chunk of WKV-7 from the state before it and the gradient of the state after it, on a GPU.

The last of the programs that are divided over time, see `pallas_kernels.gpu.parallel`, whose terms it shares. With S
and D scaled to the middle of the chunk, the formulas are those of `docs/kernels.md`.
"""

import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.parallel import (
    LEAVE,
    Chunk,
    entering_state,
    indices,
    load,
    load_factor,
    make_chunk,
    own_tile,
    row_sums,
    solved,
)
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref


def gradients(
    x: OpInputs, inverse: Ref, factors: Ref, states: Ref, d_states: Ref, dy: Ref, *outputs: Ref, plan: Plan
) -> None:
    """`outputs` takes the gradients of (r, log_w, k, v, a, b)."""
    n, tile = plan.numerics, own_tile(x, plan)
    u, dz = value_gradients(tile, inverse, factors, states, d_states, dy, outputs[3])
    n.barrier()
    d, v, at = tile.get(dy, key=False), tile.load("v"), make_chunk(tile)
    scores = {
        name: (at.scores(d, stored, at.causal), at.scores(dz, stored, at.strict))
        for name, stored in (("b", u), ("k", v))
    }
    n.barrier()
    key_gradients(make_chunk(tile), u, dz, scores, factors, states, d_states, dy, OpInputs(*outputs, reset=None))


def value_gradients(
    tile: GridIndex, inverse: Ref, factors: Ref, states: Ref, d_states: Ref, dy: Ref, dv: Ref
) -> tuple[Array, Array]:
    """(U, the gradient of what the inverse gave), rounded for products; the gradient of v goes to `dv`."""
    at = make_chunk(tile)
    n, a, k, v = at.n, at.operand("a"), at.operand("k"), tile.load("v")
    ak = at.scores(a, k, at.strict)
    s = entering_state(at, states, factors).astype(n.operand)
    u = n.pinned(solved(at, inverse, s, a, ak, v))
    n.barrier()
    at = make_chunk(tile)
    r, b, d = at.operand("r"), at.operand("b"), tile.get(dy, key=False)
    ds = leaving_gradient(at, d_states, factors).astype(n.operand)
    du = n.t_mm(at.scores(r, b, at.causal), d) + where(at.tail, n.mm_t(b, ds))
    dz = n.pinned(du + n.t_mm(load(inverse.at[tile.i]), du))
    out = n.t_mm(at.scores(r, k, at.causal), d) + where(at.tail, n.mm_t(k, ds))
    tile.put(dv, out + n.t_mm(ak, dz), key=False)
    return u, dz


def leaving_gradient(at: Chunk, d_states: Ref, factors: Ref) -> Array:
    """The gradient of the state after the chunk, scaled to its middle, float32."""
    return at.tile.buffer.load_state(d_states, at.tile.i) * load_factor(factors, at.tile, LEAVE)


def key_gradients(
    at: Chunk,
    u: Array,
    dz: Array,
    scores: dict[str, tuple[Array, Array]],
    factors: Ref,
    states: Ref,
    d_states: Ref,
    dy: Ref,
    out_refs: OpInputs,
) -> None:
    """The gradients of r, a, b, k and log_w.

    Everything is loaded and scaled again, which is cheaper than the registers to keep it. The gradients of r and a add
    up while those of b, which stores u, and of k, which stores v, are computed in turn.
    """
    n, tile, out = at.n, at.tile, at.tile.buffer.at(out_refs, at.tile.i)
    d = tile.get(dy, key=False)
    s, ds = entering_state(at, states, factors), leaving_gradient(at, d_states, factors)
    keep = None if at.segments is None else at.segments.last == 0
    total = where(keep, jnp.sum(s * ds, axis=0, keepdims=True))
    s, ds = s.astype(n.operand), ds.astype(n.operand)
    g_r, g_a = where(at.head, n.mm(d, s)), where(at.head, n.mm(dz, s))
    r, a = at.operand("r"), at.operand("a")
    terms = jnp.zeros_like(at.c)
    for name, stored in (("b", u), ("k", tile.load("v"))):
        mid, (d_r, d_a) = at.operand(name), scores[name]
        g_r, g_a = g_r + n.mm(d_r, mid), g_a + n.mm(d_a, mid)
        leaving = where(at.tail, n.mm(stored, ds))
        total = total + jnp.sum(mid.astype(jnp.float32) * leaving, axis=0, keepdims=True)
        g = leaving + n.t_mm(d_a, a) + n.t_mm(d_r, r)
        out.store(name, g * at.factor(name))
        terms = terms - mid.astype(jnp.float32) * g
    out.store("r", g_r * at.factor("r"))
    out.store("a", g_a * at.factor("a"))
    through_a = a.astype(jnp.float32) * g_a
    terms = terms + r.astype(jnp.float32) * g_r + through_a
    row, col = indices(terms.shape[0])
    out.store("log_w", row_sums(n, (col >= row).astype(jnp.float32), terms) - through_a + total)
