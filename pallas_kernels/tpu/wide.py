"""One chunk of one pack for log_w down to -20: what `tpu.chunk` does, with scores and their gradients level by level.

Costs more products, of scores alone; states, values and the inverse are those of `tpu.chunk`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.tpu import levels, stages
from pallas_kernels.tpu.chunk import Static
from pallas_kernels.tpu.inverse import inverse
from pallas_kernels.tpu.levels import BLOCKS, Factors, Spans
from pallas_kernels.tpu.packing import Masks, keep
from pallas_kernels.tpu.schedule import Stages
from pallas_kernels.tpu.stages import halves, stacked


class Setting(NamedTuple):
    """As in `tpu.chunk`, with the levels."""

    masks: Masks
    spans: Spans
    pack: int
    operand: np.dtype

    @property
    def static(self) -> Static:
        """The same for every stage of a chunk."""
        return {"pack": self.pack, "operand": self.operand}


def _levels(at: Setting, sums: Array, log_w: Array) -> Iterator[tuple[Array | None, Factors]]:
    """The block and the factors of each level."""
    blocks = (*at.spans.blocks, None)
    for level in range(len(BLOCKS)):
        yield blocks[level], levels.factors(sums, log_w, level=level)


def _within(block: Array | None, first: Array, second: Array) -> tuple[Array, Array]:
    """Both masks, within the block."""
    return (first, second) if block is None else (first & block, second & block)


def _added(sums: list[Array], more: list[Array]) -> list[Array]:
    """Element by element; a first level has no sums yet."""
    return [x + y for x, y in zip(sums, more, strict=True)] if sums else more


def forward(r, log_w, k, a, b, v, state: Array, at: Setting) -> Stages[tuple[Array, Array, Array]]:
    """(y, u, the next state); row t of u is S_{t-1} a_t."""
    masks, static = at.masks, at.static
    sums = levels.exponents(log_w, at.spans.matrix, operand=at.operand)
    yield
    scores: list[Array] = []
    for block, f in _levels(at, sums, log_w):
        earlier, upto = _within(block, masks.earlier, masks.upto)
        visible = (earlier, earlier), (upto, upto)
        to_b, to_k = stages.scores(stacked(a * f.a, r * f.r), b * f.bk, k * f.bk, visible, **static)
        yield
        scores = _added(scores, to_b + to_k)
    ab, rb, ak, rk = scores
    end = levels.ends(sums, log_w, masks)
    ti = keep(masks.earlier, (yield from inverse(ab, **static)))
    known = stages.keys_to_values(stacked(a, r) * end.enter, state, None, **static)
    yield
    known += stages.product(stacked(ak, rk), v, **static)
    yield
    known_u, known_y = halves(known)
    u = known_u + stages.product(ti, known_u, **static)
    yield
    y = known_y + stages.product(rb, u, **static)
    yield
    change = stages.outer(stacked(u, v), stacked(b * end.leave, k * end.leave), None, **static)
    return y, u, state * end.whole + change


def backward(r, log_w, k, v, a, b, u, dy, state: Array, ds: Array, at: Setting) -> Stages[tuple[Array, ...]]:
    """(dr, dlog_w, dk, dv, da, db, gradient of `state`) from the gradients of y and of the next state."""
    masks, static, operand = at.masks, at.static, at.operand
    sums = levels.exponents(log_w, at.spans.matrix, operand=operand)
    yield
    ar, bk, scores = stacked(a, r), stacked(b, k), []
    for block, f in _levels(at, sums, log_w):
        visible = _within(block, masks.later, masks.since)
        to_a, to_r = stages.scores(bk * stacked(f.bk, f.bk), a * f.a, r * f.r, (visible, visible), **static)
        yield
        scores = _added(scores, to_a + to_r)
    ba, ka, br, kr = scores
    end = levels.ends(sums, log_w, masks)
    enter, leave = end.enter, stacked(end.leave, end.leave)
    ti = keep(masks.later, (yield from inverse(ba, **static, upper=True)))
    known = stages.keys_to_values(bk * leave, ds, None, **static)
    yield
    known += stages.product(stacked(br, kr), dy, **static)
    yield
    du, dv = halves(known)
    dz = du + stages.product(ti, du, **static)
    yield
    dv += stages.product(ka, dz, **static)
    yield
    zy, visible = stacked(dz, dy), ((masks.earlier, masks.earlier), (masks.upto, masks.upto))
    to_b, to_k = stages.scores(zy, u, v, visible, **static)
    yield
    leaving = stages.values_to_keys(stacked(u, v), ds, None, **static)
    yield
    entering = stages.values_to_keys(zy, state, None, **static)
    yield
    loads, stores = (levels.through(*z, operand=operand) for z in ((ar * enter, entering), (bk * leave, leaving)))
    total = jnp.sum(state * ds, 0, keepdims=True) * end.whole + jnp.sum(stores, 0, keepdims=True)
    d_ar, d_bk = entering * enter, leaving * leave
    for block, f in _levels(at, sums, log_w):
        from_b, from_k = (stacked(*(z if block is None else keep(block, z) for z in x)) for x in (to_b, to_k))
        scale, back = stacked(f.a, f.r), stacked(f.bk, f.bk)
        ar_here, bk_here = ar * scale, bk * back
        b_here, k_here = halves(bk_here)
        g_bk = stages.transposed_products(from_b, from_k, ar_here, **static)
        yield
        g_ar = stages.two_products(from_b, b_here, from_k, k_here, **static)
        yield
        loads += levels.through(ar_here, g_ar, operand=operand)
        stores += levels.through(bk_here, g_bk, operand=operand)
        d_ar, d_bk = d_ar + g_ar * scale, d_bk + g_bk * back
    dlog_w = levels.decay_gradient(loads, stores, total)
    ds = ds * end.whole + stages.outer(zy, ar * enter, None, **static)
    (da, dr), (db, dk) = halves(d_ar), halves(d_bk)
    return dr, dlog_w, dk, dv, da, db, ds


def state_backward(r, log_w, a, b, dy, ds: Array, at: Setting) -> Stages[tuple[Array]]:
    """The gradient of the state before the chunk alone, as in `tpu.chunk`: k, v and the states do not enter."""
    masks, static = at.masks, at.static
    sums = levels.exponents(log_w, at.spans.matrix, operand=at.operand)
    yield
    scores: list[Array] = []
    for block, f in _levels(at, sums, log_w):
        visible = _within(block, masks.later, masks.since)
        to_a, to_r = stages.scores(b * f.bk, a * f.a, r * f.r, (visible,), **static)
        yield
        scores = _added(scores, to_a + to_r)
    ba, br = scores
    end = levels.ends(sums, log_w, masks)
    ti = keep(masks.later, (yield from inverse(ba, **static, upper=True)))
    du = stages.two_products(b * end.leave, ds, br, dy, **static)
    yield
    dz = du + stages.product(ti, du, **static)
    yield
    whole = stages.by_rows(end.whole, pack=at.pack)
    return (ds * whole + stages.outer(stacked(a, r) * end.enter, stacked(dz, dy), None, **static),)
