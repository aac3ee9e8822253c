"""All gradients of one chunk of WKV-7 from the state before it and the gradient of the state after it, on a GPU.

The last of the programs that are divided over time, see `pallas_kernels.gpu.parallel`, whose terms it shares. With S
and D scaled to the middle of the chunk, the formulas are those of `docs/concepts/kernels-mathematics.md`.
"""

import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.parallel import (
    ONWARD,
    Chunk,
    load,
    load_transposed,
    load_weights,
    make_chunk,
    own_tile,
    row_sums,
)
from pallas_kernels.gpu.tiles import Plan, Ref


def gradients(
    x: OpInputs, weights: Ref, inverse: Ref, states: Ref, d_states: Ref, dy: Ref, *outputs: Ref, plan: Plan
) -> None:
    """`outputs` takes the gradients of (r, log_w, k, v, a, b).

    Products that do not wait for each other stand together, so that their operands share barriers. What is transposed
    is loaded so, or is a product of its own with its factors exchanged.
    """
    at = make_chunk(own_tile(x, plan))
    n, tile, i = at.n, at.tile, at.tile.i
    out, size = tile.buffer.at(OpInputs(*outputs, reset=None), i), (plan.value, plan.key)
    onward, seen_before, seen = load_weights(weights, ONWARD), *at.seen()
    (v, v_t), (d, d_t) = ((tile.get(ref, key=False), tile.get_transposed(ref, key=False)) for ref in (x.v, dy))
    rest, rest_t = load(inverse.at[i]), load_transposed(inverse, i)
    s, s_t, ds, ds_t = (
        z for ref in (states, d_states) for z in (load(ref.at[i], *size), load_transposed(ref, i, *size))
    )
    scaled = at.scaled(weights, "a", "k", "r", "b")
    a, k, r, b = scaled.get("akrb")
    a_t, r_t, k_t = a.T, r.T, k.T
    ak, br = at.masked(n.mm(a, k_t), at.strict), at.masked(n.mm(b, r_t), seen)
    ka, kr = at.masked(n.mm(k, a_t), seen_before), at.masked(n.mm(k, r_t), seen)
    known, du, dv = where(at.head, n.mm(a, s_t)), where(at.tail, n.mm(b, ds_t)), where(at.tail, n.mm(k, ds_t))
    known, du, dv = known + n.mm(ak, v), du + n.mm(br, d), dv + n.mm(kr, d)
    u, dz = n.pinned(known + n.mm(rest, known)), n.pinned(du + n.mm(rest_t, du))
    u_t, dz_t = u.T, dz.T
    tile.put(outputs[3], dv + n.mm(ka, dz), key=False)
    d_rb, d_rk = at.masked(n.mm(d, u_t), at.causal), at.masked(n.mm(d, v_t), at.causal)
    d_ab, d_ak = at.masked(n.mm(dz, u_t), at.strict), at.masked(n.mm(dz, v_t), at.strict)
    d_ba, d_br = at.masked(n.mm(u, dz_t), seen_before), at.masked(n.mm(u, d_t), seen)
    d_ka, d_kr = at.masked(n.mm(v, dz_t), seen_before), at.masked(n.mm(v, d_t), seen)
    dr, da = where(at.head, n.mm(d, s)), where(at.head, n.mm(dz, s))
    through_b, through_k = where(at.tail, n.mm(u, ds)), where(at.tail, n.mm(v, ds))
    dr, da = dr + n.mm(d_rb, b) + n.mm(d_rk, k), da + n.mm(d_ab, b) + n.mm(d_ak, k)
    db, dk = through_b + n.mm(d_ba, a) + n.mm(d_br, r), through_k + n.mm(d_ka, a) + n.mm(d_kr, r)
    crossing = through_b * b.astype(jnp.float32) + through_k * k.astype(jnp.float32)
    dlog_w = decay_gradient(at, onward, (r, a, b, k), (dr, da, db, dk), crossing, s, ds)
    for name, g in (("r", dr), ("a", da), ("b", db), ("k", dk)):
        out.store(name, g * scaled.factors[name])
    out.store("log_w", dlog_w)


def decay_gradient(
    at: Chunk,
    onward: Array,
    operands: tuple[Array, Array, Array, Array],
    given: tuple[Array, Array, Array, Array],
    crossing: Array,
    s: Array,
    ds: Array,
) -> Array:
    """The gradient of log_w [C, K].

    onward: of `make_weights`; operands, given: r, a, b, k as products took them, and their gradients, both relative to
    the middle; crossing: [C, K], what b and k give to the state after the chunk, times its gradient. All sums are
    products with matrices of ones, for which threads exchange their operands and nothing else.
    """
    n, size = at.n, at.tile.plan.chunk
    r, a, b, k = (x.astype(jnp.float32) * g for x, g in zip(operands, given, strict=True))
    kept = row_sums(n, jnp.ones((size, s.shape[0]), jnp.float32), s.astype(jnp.float32) * ds.astype(jnp.float32))
    total = row_sums(n, jnp.ones((size, size), jnp.float32), crossing) + where(at.keep, kept)
    return row_sums(n, onward, r - b - k + a) - a + total
