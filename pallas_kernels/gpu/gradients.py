"""All gradients of one chunk of WKV-7 from the state before it and the gradient of the state after it, on a GPU.

The last of the programs that are divided over time, see `pallas_kernels.gpu.parallel`, whose terms it shares. With S
and D scaled to the middle of the chunk, the formulas are those of `docs/concepts/kernels-mathematics.md`.
"""

import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import where
from pallas_kernels.gpu.parallel import Chunk, indices, load, make_chunk, own_tile, row_sums, stored_state
from pallas_kernels.gpu.tiles import Plan, Ref


def gradients(x: OpInputs, inverse: Ref, states: Ref, d_states: Ref, dy: Ref, *outputs: Ref, plan: Plan) -> None:
    """`outputs` takes the gradients of (r, log_w, k, v, a, b).

    Products that do not wait for each other stand together, so that their operands share barriers.
    """
    at = make_chunk(own_tile(x, plan))
    n, tile = at.n, at.tile
    out = tile.buffer.at(OpInputs(*outputs, reset=None), tile.i)
    v, d, rest = tile.load("v"), tile.get(dy, key=False), load(inverse.at[tile.i])
    s, ds = stored_state(at, states), stored_state(at, d_states)
    scaled = at.scaled("a", "k", "r", "b")
    a, k, r, b = scaled.get("akrb")
    ak, rb, rk = at.scores(a, k, at.strict), at.scores(r, b, at.causal), at.scores(r, k, at.causal)
    known, du, dv = where(at.head, n.mm_t(a, s)), where(at.tail, n.mm_t(b, ds)), where(at.tail, n.mm_t(k, ds))
    known, du, dv = known + n.mm(ak, v), du + n.t_mm(rb, d), dv + n.t_mm(rk, d)
    u, dz = n.pinned(known + n.mm(rest, known)), n.pinned(du + n.t_mm(rest, du))
    tile.put(outputs[3], dv + n.t_mm(ak, dz), key=False)
    d_rb, d_ab = at.scores(d, u, at.causal), at.scores(dz, u, at.strict)
    d_rk, d_ak = at.scores(d, v, at.causal), at.scores(dz, v, at.strict)
    dr, da = where(at.head, n.mm(d, s)), where(at.head, n.mm(dz, s))
    through_b, through_k = where(at.tail, n.mm(u, ds)), where(at.tail, n.mm(v, ds))
    dr, da = dr + n.mm(d_rb, b) + n.mm(d_rk, k), da + n.mm(d_ab, b) + n.mm(d_ak, k)
    db, dk = through_b + n.t_mm(d_ab, a) + n.t_mm(d_rb, r), through_k + n.t_mm(d_ak, a) + n.t_mm(d_rk, r)
    crossing = through_b * b.astype(jnp.float32) + through_k * k.astype(jnp.float32)
    dlog_w = decay_gradient(at, (r, a, b, k), (dr, da, db, dk), crossing, s, ds)
    for name, g in (("r", dr), ("a", da), ("b", db), ("k", dk)):
        out.store(name, g * scaled.factors[name])
    out.store("log_w", dlog_w)


def decay_gradient(
    at: Chunk,
    operands: tuple[Array, Array, Array, Array],
    given: tuple[Array, Array, Array, Array],
    crossing: Array,
    s: Array,
    ds: Array,
) -> Array:
    """The gradient of log_w [C, K].

    operands, given: r, a, b, k as products took them, and their gradients, both relative to the middle;
    crossing: [C, K], what b and k give to the state after the chunk, times its gradient. All sums are products with
    matrices of ones, for which threads exchange their operands and nothing else.
    """
    n, size = at.n, at.tile.plan.chunk
    r, a, b, k = (x.astype(jnp.float32) * g for x, g in zip(operands, given, strict=True))
    row, col = indices(size)
    kept = row_sums(n, jnp.ones((size, s.shape[0]), jnp.float32), s.astype(jnp.float32) * ds.astype(jnp.float32))
    total = row_sums(n, jnp.ones((size, size), jnp.float32), crossing) + where(at.keep, kept)
    return row_sums(n, (col >= row).astype(jnp.float32), r - b - k + a) - a + total
