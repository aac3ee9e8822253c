"""One chunk of one pack: forward, full backward, and the backward of the state alone, as generators of stages.

Arrays of tokens are [C, 128], states [V, 128] with lanes (head, key), all float32. A `yield` stands after each product,
where the next pack may issue its own. `ti` is the inverse without its diagonal of ones, which stays exact that way.
"""

from typing import NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.tpu import stages
from pallas_kernels.tpu.inverse import inverse
from pallas_kernels.tpu.packing import LANES, Masks, keep
from pallas_kernels.tpu.schedule import Stages
from pallas_kernels.tpu.stages import halves, stacked


class Static(TypedDict):
    """Keyword arguments of a stage that are not traced."""

    pack: int
    operand: np.dtype


class Setting(NamedTuple):
    """masks; heads per pack; dtype of the operands of products: bfloat16, or float32 for exact ones; width of the
    matrix units, 128 or 256."""

    masks: Masks
    pack: int
    operand: np.dtype
    unit: int

    @property
    def static(self) -> Static:
        """The same for every stage of a chunk."""
        return {"pack": self.pack, "operand": self.operand}


def through_state(keys: Array, state: Array, mask: Array | None, scores: Array, x: Array, at: Setting) -> Stages[Array]:
    """keys state^T, of the rows in `mask` only, + scores x, by head."""
    if at.unit > LANES:
        known = stages.through_state(keys, state, mask, scores, x, **at.static)
    else:
        known = stages.keys_to_values(keys, state, mask, **at.static)
        yield
        known += stages.product(scores, x, **at.static)
    yield
    return known


def forward(r, log_w, k, v, a, b, state: Array, at: Setting) -> Stages[tuple[Array, Array, Array]]:
    """(y, u, the next state); row t of u is S_{t-1} a_t."""
    masks, static = at.masks, at.static
    d = stages.decays(log_w, masks)
    ar, b, k = stacked(a * d.a, r * d.r), b * d.bk, k * d.bk
    visible = (masks.earlier, masks.earlier), (masks.upto, masks.upto)
    (ab, rb), (ak, rk) = stages.scores(ar, b, k, visible, **static)
    yield
    ti = keep(masks.earlier, (yield from inverse(ab, **static)))
    known = yield from through_state(ar, state * d.enter, masks.head, stacked(ak, rk), v, at)
    known_u, known_y = halves(known)
    u = known_u + stages.product(ti, known_u, **static)
    yield
    y = known_y + stages.product(rb, u, **static)
    yield
    change = stages.outer(stacked(u, v), stacked(b, k), masks.tail, **static)
    return y, u, state * d.whole + change * d.leave


def backward(r, log_w, k, v, a, b, u, dy, state: Array, ds: Array, at: Setting) -> Stages[tuple[Array, ...]]:
    """(dr, dlog_w, dk, dv, da, db, gradient of `state`) from the gradients of y and of the next state."""
    masks, static = at.masks, at.static
    d = stages.decays(log_w, masks)
    a, r, b, k = a * d.a, r * d.r, b * d.bk, k * d.bk
    ar, bk = stacked(a, r), stacked(b, k)
    visible = masks.later, masks.since
    (ba, ka), (br, kr) = stages.scores(bk, a, r, (visible, visible), **static)
    yield
    ti = keep(masks.later, (yield from inverse(ba, **static, upper=True)))
    known = yield from through_state(bk, ds * d.leave, masks.tail, stacked(br, kr), dy, at)
    du, dv = halves(known)
    dz = du + stages.product(ti, du, **static)
    yield
    dv += stages.product(ka, dz, **static)
    yield
    zy, visible = stacked(dz, dy), ((masks.earlier, masks.earlier), (masks.upto, masks.upto))
    to_b, to_k = (stacked(*parts) for parts in stages.scores(zy, u, v, visible, **static))
    yield
    leaving = stages.values_to_keys(stacked(u, v), ds * d.leave, masks.tail, **static)
    yield
    g_bk = leaving + stages.transposed_products(to_b, to_k, ar, **static)
    yield
    g_ar = stages.values_to_keys(zy, state * d.enter, masks.head, **static)
    yield
    g_ar += stages.two_products(to_b, b, to_k, k, **static)
    yield
    carried = jnp.sum(state * ds, 0, keepdims=True) * d.whole
    dlog_w = stages.decay_gradient(g_ar, g_bk, leaving, ar, bk, carried, operand=at.operand)
    ds = ds * d.whole + stages.outer(zy, ar, masks.head, **static) * d.enter
    (da, dr), (db, dk) = halves(g_ar), halves(g_bk)
    return dr * d.r, dlog_w, dk * d.bk, dv, da * d.a, db * d.bk, ds


def state_backward(r, log_w, a, b, dy, ds: Array, at: Setting) -> Stages[tuple[Array]]:
    """The gradient of the state before the chunk alone: k, v and the states do not enter."""
    masks, static = at.masks, at.static
    d = stages.decays(log_w, masks)
    a, r, b = a * d.a, r * d.r, b * d.bk
    (ba,), (br,) = stages.scores(b, a, r, ((masks.later, masks.since),), **static)
    yield
    ti = keep(masks.later, (yield from inverse(ba, **static, upper=True)))
    du = yield from through_state(b, ds * d.leave, masks.tail, br, dy, at)
    dz = du + stages.product(ti, du, **static)
    yield
    return (ds * d.whole + stages.outer(stacked(dz, dy), stacked(a, r), masks.head, **static) * d.enter,)
