"""One chunk of one pack: forward, full backward, and the backward of the state alone, as generators of stages.

Arrays of tokens are [C, 128], states [V, 128] with lanes (head, key), all float32. A `yield` stands after each product,
where the next pack may issue its own. `ti` is the inverse without its diagonal of ones, which stays exact that way.
"""

from collections.abc import Callable
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


class Ahead(NamedTuple):
    """What a chunk needs that does not depend on its state; `products` may be kept as products round them."""

    products: tuple[Array, ...]
    exact: tuple[Array, ...]


class Body(NamedTuple):
    """A chunk in two parts, of which the first may run a chunk ahead of the second; together they are one generator."""

    ahead: Callable[..., Stages[Ahead]]
    """(tokens but the last array, setting)"""
    after: Callable[..., Stages[tuple[Array, ...]]]
    """(what `ahead` returns, the last array of tokens, state, setting)"""

    def __call__(self, *given) -> Stages[tuple[Array, ...]]:
        *first, last, state, at = given
        ahead = yield from self.ahead(*first, at)
        return (yield from self.after(ahead, last, state, at))


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


def _forward_ahead(r, log_w, k, a, b, at: Setting) -> Stages[Ahead]:
    masks = at.masks
    d = stages.decays(log_w, masks)
    ar, b, k = stacked(a * d.a, r * d.r), b * d.bk, k * d.bk
    visible = (masks.earlier, masks.earlier), (masks.upto, masks.upto)
    (ab, rb), (ak, rk) = stages.scores(ar, b, k, visible, **at.static)
    yield
    return Ahead((ar, stacked(b, k), ab, rb, stacked(ak, rk)), (d.enter, d.leave, d.whole))


def _forward_after(ahead: Ahead, v, state: Array, at: Setting) -> Stages[tuple[Array, Array, Array]]:
    masks, static = at.masks, at.static
    (ar, bk, ab, rb, to_k), (enter, leave, whole) = ahead
    ti = keep(masks.earlier, (yield from inverse(ab, **static)))
    known = yield from through_state(ar, state * enter, masks.head, to_k, v, at)
    known_u, known_y = halves(known)
    u = known_u + stages.product(ti, known_u, **static)
    yield
    y = known_y + stages.product(rb, u, **static)
    yield
    return y, u, state * whole + stages.outer(stacked(u, v), bk, masks.tail, **static) * leave


forward = Body(_forward_ahead, _forward_after)
"""(r, log_w, k, a, b, v, state, at) -> (y, u, the next state); row t of u is S_{t-1} a_t."""


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


def _state_backward_ahead(r, log_w, a, b, at: Setting) -> Stages[Ahead]:
    masks = at.masks
    d = stages.decays(log_w, masks)
    a, r, b = a * d.a, r * d.r, b * d.bk
    (ba,), (br,) = stages.scores(b, a, r, ((masks.later, masks.since),), **at.static)
    whole = stages.by_rows(d.whole, pack=at.pack)
    yield
    ar = stages.limited(masks.head, stacked(a, r) * d.enter)
    return Ahead((ar, stages.limited(masks.tail, b * d.leave), ba, br), (whole,))


def _state_backward_after(ahead: Ahead, dy, ds: Array, at: Setting) -> Stages[tuple[Array]]:
    masks, static = at.masks, at.static
    (ar, b, ba, br), (whole,) = ahead
    ti = keep(masks.later, (yield from inverse(ba, **static, upper=True)))
    du = stages.two_products(b, ds, br, dy, **static)
    yield
    dz = du + stages.product(ti, du, **static)
    yield
    return (ds * whole + stages.outer(ar, stacked(dz, dy), None, **static),)


state_backward = Body(_state_backward_ahead, _state_backward_after)
"""(r, log_w, a, b, dy, ds, at) -> (the gradient of the state before the chunk,): k, v and the states do not enter.

ds is [K, 128] with lanes (head, value), so that products take it as it lies; the factors are put on tokens for it.
"""
