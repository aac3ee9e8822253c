"""One chunk of the WKV-7 recurrence as matrix products: its terms and every gradient.

Arrays have the axes [B, H, n, C, N]: n chunks of C tokens (rows), all in float32; states are [B, H, n, V, K] and always
the one at the start of their chunk. Within a chunk, with c the inclusive cumulative sum of log_w and c- = c - log_w,

    U = (I - A_ab)^-1 (a e^(c-) S' + A_ak V)          (row t of U is S_{t-1} a_t)
    Y = r e^c S' + A_rb U + A_rk V
    S_next = S diag(e^G) + U' (b e^(G-c)) + V' (k e^(G-c))          with G = c at the last row,

where A_xy[t, s] = x_t e^(c_t - c_s) y_s for s < t (A_a., with c-_t for c_t) or s <= t (A_r.). The exponents are centred
in the middle of the chunk, so that every factor stays far inside float32: e^5 for the strongest decay of RWKV-7, log_w
= -0.607, at C = 16, e^10 at C = 32. At C = 32, log_w below -5 overflows: for decays of any strength there is `levels`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class ChunkInputs(NamedTuple):
    """r, log_w, k, a, b [B, H, n, C, K] and v [B, H, n, C, V], float32; reset Bool [B, 1, n, C, 1] or None."""

    r: Array
    log_w: Array
    k: Array
    v: Array
    a: Array
    b: Array
    reset: Array | None


class Masks(NamedTuple):
    """Which token (row) sees which (column). The last three are None where there are no resets.

    strict, causal: s < t and s <= t on scores, within one segment between resets.
    head: rows before the first reset, which see the incoming state; tail: rows from the last reset on, which reach the
    outgoing state; keep: whether the incoming state reaches the outgoing one.
    """

    strict: Array
    causal: Array
    head: Array | None
    tail: Array | None
    keep: Array | None


class Scale(NamedTuple):
    """Decay factors relative to the middle of the chunk, for r, a, and b and k.

    `enter` leads from the chunk's start to its middle and `leave` from there to its end; they carry the reset masks.
    """

    r: Array
    a: Array
    bk: Array
    enter: Array
    leave: Array


class Middle(NamedTuple):
    """Operands scaled to the middle of the chunk, and the factors that did it."""

    r: Array
    a: Array
    b: Array
    k: Array
    scale: Scale


class Terms(NamedTuple):
    """What a chunk needs besides its state: operands scaled to the start or the end, and masked scores."""

    r_in: Array
    a_in: Array
    b_out: Array
    k_out: Array
    decay: Array
    inverse: Array
    ak: Array
    rb: Array
    rk: Array
    masks: Masks


def mm(x: Array, y: Array) -> Array:
    """x @ y over the last two axes in full float32."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def mm_t(x: Array, y: Array) -> Array:
    """x @ y^T."""
    return mm(x, jnp.swapaxes(y, -1, -2))


def t_mm(x: Array, y: Array) -> Array:
    """x^T @ y."""
    return mm(jnp.swapaxes(x, -1, -2), y)


def where(mask: Array | None, x: Array) -> Array:
    """x where mask, else 0; all of x without a mask. Applied after products, so that an overflow cannot become NaN."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def make_masks(reset: Array | None, size: int) -> Masks:
    """Masks for chunks of `size` tokens, from reset Bool [B, 1, n, C, 1] or None."""
    row, col = jnp.arange(size)[:, None], jnp.arange(size)[None]
    strict, causal = ((m[None, None, None]) for m in (col < row, col <= row))
    if reset is None:
        return Masks(strict, causal, None, None, None)
    segment = jnp.cumsum(reset.astype(jnp.int32), axis=-2)
    same = segment == jnp.swapaxes(segment, -1, -2)
    last = segment[..., -1:, :]
    return Masks(strict & same, causal & same, segment == 0, segment == last, last == 0)


def unit_lower_inverse(lower: Array) -> Array:
    """(I - lower)^-1 for strictly lower triangular [..., C, C], C a power of two, by doubling blocks.

    As exact as forward substitution, unlike a Neumann series, and all matrix products. Up to 16 rows the blocks are
    picked by masks, which avoids tiny products; above, by halves.
    """
    size = lower.shape[-1]
    if size <= 16:
        return _masked_inverse(lower)
    half = size // 2
    first, second = lower[..., :half, :half], lower[..., half:, half:]
    first, second = jnp.unstack(unit_lower_inverse(jnp.stack([first, second], -3)), axis=-3)
    below = mm(second, mm(lower[..., half:, :half], first))
    return jnp.block([[first, jnp.zeros_like(below)], [below, second]])


def _masked_inverse(lower: Array) -> Array:
    size, ranks = lower.shape[-1], (None,) * (lower.ndim - 2)
    row, col = jnp.arange(size)[:, None], jnp.arange(size)[None]
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype)[ranks], lower.shape)
    block = 1
    while block < size:
        below = (row // (2 * block) == col // (2 * block)) & (row // block > col // block)
        step = where(below[ranks], lower)
        inverse = inverse + (step if block == 1 else mm(inverse, mm(step, inverse)))
        block *= 2
    return inverse


def row_sums(x: Array, *, reverse: bool = False) -> Array:
    """Inclusive cumulative sum over the rows of each chunk (`reverse`: from the last row up), as a matrix product."""
    ones = jnp.tril(jnp.ones((x.shape[-2], x.shape[-2]), x.dtype))
    triangle = ones.T if reverse else ones
    return mm(jnp.broadcast_to(triangle, x.shape[:-2] + ones.shape), x)


def make_scale(log_w: Array, masks: Masks) -> tuple[Scale, Array]:
    """Decay factors of each chunk, and the decay from its start to its end [B, H, n, 1, K]."""
    c = row_sums(log_w)
    middle, end = c[..., (c.shape[-2] - 1) // 2, None, :], c[..., -1:, :]
    scale = Scale(
        r=jnp.exp(c - middle),
        a=jnp.exp(c - log_w - middle),
        bk=jnp.exp(middle - c),
        enter=where(masks.head, jnp.exp(middle)),
        leave=where(masks.tail, jnp.exp(end - middle)),
    )
    return scale, where(masks.keep, jnp.exp(end))


def make_terms(x: ChunkInputs) -> tuple[Terms, Middle]:
    """Everything in a chunk that does not depend on its state."""
    masks = make_masks(x.reset, x.r.shape[-2])
    scale, decay = make_scale(x.log_w, masks)
    mid = Middle(x.r * scale.r, x.a * scale.a, x.b * scale.bk, x.k * scale.bk, scale)
    terms = Terms(
        r_in=mid.r * scale.enter,
        a_in=mid.a * scale.enter,
        b_out=mid.b * scale.leave,
        k_out=mid.k * scale.leave,
        decay=decay,
        inverse=unit_lower_inverse(where(masks.strict, mm_t(mid.a, mid.b))),
        ak=where(masks.strict, mm_t(mid.a, mid.k)),
        rb=where(masks.causal, mm_t(mid.r, mid.b)),
        rk=where(masks.causal, mm_t(mid.r, mid.k)),
        masks=masks,
    )
    return terms, mid


class ScoreGradients(NamedTuple):
    """Gradients of the masked scores, and of v; dz is that of what the inverse is applied to."""

    ab: Array
    ak: Array
    rb: Array
    rk: Array
    dz: Array
    dv: Array


def score_gradients(x: ChunkInputs, t: Terms, u: Array, dy: Array, ds: Array) -> ScoreGradients:
    """Gradients of scores and values; arguments as for `gradients`."""
    du = t_mm(t.rb, dy) + mm_t(t.b_out, ds)
    dz = t_mm(t.inverse, du)
    return ScoreGradients(
        ab=where(t.masks.strict, mm_t(dz, u)),
        ak=where(t.masks.strict, mm_t(dz, x.v)),
        rb=where(t.masks.causal, mm_t(dy, u)),
        rk=where(t.masks.causal, mm_t(dy, x.v)),
        dz=dz,
        dv=t_mm(t.rk, dy) + mm_t(t.k_out, ds) + t_mm(t.ak, dz),
    )


def gradients(
    x: ChunkInputs, t: Terms, mid: Middle, s: Array, u: Array, dy: Array, ds: Array
) -> tuple[tuple[Array, ...], Array]:
    """Gradients of chunks from that of their outputs, `dy` [B, H, n, C, V], and of their last states, `ds`.

    `s` is the first state and `u` row by row S_{t-1} a_t. Returns ((dr, dlog_w, dk, dv, da, db), first state's).
    """
    d, scale = score_gradients(x, t, u, dy, ds), mid.scale
    # Gradients of the operands relative to the middle: scores first, then what goes through the states.
    leave_b, leave_k = mm(u, ds) * scale.leave, mm(x.v, ds) * scale.leave
    g_r = mm(d.rb, mid.b) + mm(d.rk, mid.k) + mm(dy, s) * scale.enter
    g_a = mm(d.ab, mid.b) + mm(d.ak, mid.k) + mm(d.dz, s) * scale.enter
    g_b = t_mm(d.ab, mid.a) + t_mm(d.rb, mid.r) + leave_b
    g_k = t_mm(d.ak, mid.a) + t_mm(d.rk, mid.r) + leave_k
    # Decay: made of the operands that the products above used, so that what pairs of tokens add cancels exactly.
    through_a = mid.a * g_a
    total = jnp.sum(s * ds, -2, keepdims=True) * t.decay + jnp.sum(mid.b * leave_b + mid.k * leave_k, -2, keepdims=True)
    terms = mid.r * g_r - mid.b * g_b - mid.k * g_k + through_a
    dlog_w = row_sums(terms, reverse=True) - through_a + total
    ds_first = ds * t.decay + t_mm(dy, t.r_in) + t_mm(d.dz, t.a_in)
    return (g_r * scale.r, dlog_w, g_k * scale.bk, d.dv, g_a * scale.a, g_b * scale.bk), ds_first
