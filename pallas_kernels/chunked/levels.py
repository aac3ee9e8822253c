"""One chunk of the WKV-7 recurrence under decays of any strength: no factor exceeds 1.

`chunked.math` writes what token s stored and token t loads with e^(c_t - c_s) = e^(c_t - rho) e^(rho - c_s), where the
second factor overflows under strong decays. Here the chunk is halved again and again. For two tokens s < t there is one
level at which a block of 2h rows has s in its first half and t in its second; with m the last row of the first half,

    e^(sum of log_w over s+1 ... t) = e^(sum over m+1 ... t) e^(sum over s+1 ... m),

and neither factor exceeds 1. At every level a row either loads (second halves) or stores (first halves). What is left
is s = t, which only r sees, with factor 1. a loads before its token decays the state, so its sums end at t - 1.

The sums are products with matrices of zeros and ones, never differences of cumulative sums, which would lose the small
ones beside the large ones. The gradient of log_w is made of the transposed matrices: of what crosses a token, by its
readers in second halves and by its writers in first ones. Nothing cancels in it either.

Arrays and notation as in `chunked.math`; L levels stand before the rows, [B, H, n, L, C, K].
"""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pallas_kernels.chunked.math import (
    ChunkInputs,
    Terms,
    make_masks,
    mm,
    mm_t,
    score_gradients,
    t_mm,
    unit_lower_inverse,
    where,
)


class Spans(NamedTuple):
    """Which tokens j decay what lies between a row and where its sum starts or ends: bool [L, C, C], rows i.

    r, a: rows of second halves, from the boundary up to i, or up to i - 1. bk: rows of first halves, from i + 1 up to
    the boundary. block: rows i and columns j of one block. second: bool [L, C, 1], the rows of second halves.
    """

    r: np.ndarray
    a: np.ndarray
    bk: np.ndarray
    block: np.ndarray
    second: np.ndarray


class Levels(NamedTuple):
    """Factors of each level, 0 on the rows of the other half, and the operands with them.

    `enter_` and `leave` [B, H, n, C, K] lead from the start of the chunk and to its end; they carry the reset masks.
    """

    scale_r: Array
    scale_a: Array
    scale_bk: Array
    r: Array
    a: Array
    b: Array
    k: Array
    enter_r: Array
    enter_a: Array
    leave: Array


@cache
def spans(size: int) -> Spans:
    """The levels of a chunk of `size` tokens, a power of two, from blocks of two rows to the whole chunk."""
    half = 1 << np.arange(size.bit_length() - 1)[:, None, None]
    row, col = np.arange(size)[None, :, None], np.arange(size)[None, None]
    same, second = row // half == col // half, row // half % 2 == 1
    return Spans(
        r=same & second & (col <= row),
        a=same & second & (col < row),
        bk=same & ~second & (col > row),
        block=row // (2 * half) == col // (2 * half),
        second=second,
    )


def _along(which: np.ndarray, x: Array) -> Array:
    """Sums of rows j of x [B, H, n, C, K] that `which` [L, C, C] names for row i: [B, H, n, L, C, K]."""
    return jnp.einsum("lij,bhnjk->bhnlik", which.astype(np.float32), x, precision=lax.Precision.HIGHEST)


def _back(which: np.ndarray, x: Array) -> Array:
    """The transpose of `_along`, summed over the levels."""
    return jnp.einsum("lij,bhnlik->bhnjk", which.astype(np.float32), x, precision=lax.Precision.HIGHEST)


def _whole(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As r, a and bk of `Spans`, from the start of the chunk and to its end: bool [1, C, C]."""
    row, col = np.arange(size)[None, :, None], np.arange(size)[None, None]
    return col <= row, col < row, col > row


def _each(x: Array) -> Array:
    """x [B, H, n, ., .] with an axis for levels."""
    return x[..., None, :, :]


def make_terms(x: ChunkInputs) -> tuple[Terms, Levels]:
    """Everything in a chunk that does not depend on its state."""
    size = x.r.shape[-2]
    masks, span = make_masks(x.reset, size), spans(size)
    to_r, to_a, to_end = (jnp.exp(_along(which, x.log_w)[..., 0, :, :]) for which in _whole(size))
    second = jnp.asarray(span.second)[None, None, None]
    scale_r, scale_a = (where(second, jnp.exp(_along(which, x.log_w))) for which in (span.r, span.a))
    scale_bk = where(~second, jnp.exp(_along(span.bk, x.log_w)))
    at = Levels(
        scale_r, scale_a, scale_bk,
        r=_each(x.r) * scale_r, a=_each(x.a) * scale_a, b=_each(x.b) * scale_bk, k=_each(x.k) * scale_bk,
        enter_r=where(masks.head, to_r), enter_a=where(masks.head, to_a), leave=where(masks.tail, to_end),
    )  # fmt: skip
    terms = Terms(
        r_in=x.r * at.enter_r,
        a_in=x.a * at.enter_a,
        b_out=x.b * at.leave,
        k_out=x.k * at.leave,
        decay=where(masks.keep, to_r[..., -1:, :]),
        inverse=unit_lower_inverse(where(masks.strict, _scores(at.a, at.b))),
        ak=where(masks.strict, _scores(at.a, at.k)),
        rb=where(masks.causal, _scores(at.r, at.b) + _diagonal(x.r, x.b)),
        rk=where(masks.causal, _scores(at.r, at.k) + _diagonal(x.r, x.k)),
        masks=masks,
    )
    return terms, at


def _scores(loads: Array, stores: Array) -> Array:
    """Products of the rows of both at each level, within its blocks: [B, H, n, C, C]."""
    block = jnp.asarray(spans(loads.shape[-2]).block)[None, None, None]
    return jnp.sum(where(block, mm_t(loads, stores)), -3)


def _diagonal(x: Array, y: Array) -> Array:
    """The products of each row of x with the same row of y, on the diagonal."""
    return jnp.sum(x * y, -1, keepdims=True) * jnp.eye(x.shape[-2], dtype=x.dtype)[None, None, None]


def _on_diagonal(scores: Array) -> Array:
    """The diagonal, [B, H, n, C, 1]."""
    return jnp.diagonal(scores, axis1=-2, axis2=-1)[..., None]


def gradients(
    x: ChunkInputs, t: Terms, at: Levels, s: Array, u: Array, dy: Array, ds: Array
) -> tuple[tuple[Array, ...], Array]:
    """As `chunked.math.gradients`."""
    d, span = score_gradients(x, t, u, dy, ds), spans(x.r.shape[-2])
    block = jnp.asarray(span.block)[None, None, None]
    ab, ak, rb, rk = (where(block, _each(z)) for z in (d.ab, d.ak, d.rb, d.rk))
    g_r, g_a = (mm(rb, at.b) + mm(rk, at.k)) * at.scale_r, (mm(ab, at.b) + mm(ak, at.k)) * at.scale_a
    g_b, g_k = (t_mm(ab, at.a) + t_mm(rb, at.r)) * at.scale_bk, (t_mm(ak, at.a) + t_mm(rk, at.r)) * at.scale_bk
    in_r, in_a = mm(dy, s) * at.enter_r, mm(d.dz, s) * at.enter_a
    out_b, out_k = mm(u, ds) * at.leave, mm(x.v, ds) * at.leave
    own_b, own_k = _on_diagonal(d.rb), _on_diagonal(d.rk)
    dr = jnp.sum(g_r, -3) + in_r + own_b * x.b + own_k * x.k
    da = jnp.sum(g_a, -3) + in_a
    db = jnp.sum(g_b, -3) + out_b + own_b * x.r
    dk = jnp.sum(g_k, -3) + out_k + own_k * x.r
    through = (
        (span.r, _each(x.r) * g_r), (span.a, _each(x.a) * g_a), (span.bk, _each(x.b) * g_b + _each(x.k) * g_k),
        *zip(_whole(x.r.shape[-2]), map(_each, (x.r * in_r, x.a * in_a, x.b * out_b + x.k * out_k)), strict=True),
    )  # fmt: skip
    dlog_w = jnp.sum(s * ds, -2, keepdims=True) * t.decay + sum(_back(which, z) for which, z in through)
    ds_first = ds * t.decay + t_mm(dy, t.r_in) + t_mm(d.dz, t.a_in)
    return (dr, dlog_w, dk, d.dv, da, db), ds_first
