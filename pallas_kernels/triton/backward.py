"""The full backward of WKV-7 in the Triton language; conventions and helpers as in `pallas_kernels.triton.kernels`."""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import triton
import triton.language as tl

from pallas_kernels.triton.kernels import (
    advance,
    dot,
    fine_dot,
    load,
    make_masks,
    make_scale,
    rounded,
    scores,
    segments,
    state_tile,
    store,
    tile,
    unit_lower_inverse,
)


@triton.jit
def product(operand, x):
    """In float32, with the operand that the matrix products used."""
    return operand.to(tl.float32) * x


@triton.jit
def mid(pointer, where, factor, HALF: tl.constexpr):
    """The tile scaled to the middle of the chunk, as products take it."""
    return rounded(load(pointer, where).to(tl.float32) * factor, HALF)


@triton.jit
def backward(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, states, u_ptr, dy_ptr, ds_last,
    dr_ptr, dlog_w_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr, ds0,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, EVERY: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """All gradients; those of r, log_w, k, a, b are parts [blocks of V, B, T, H, K], one for each block of values."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    head, at = (batch * H + h) * V * K, state_tile(0, 0, j, H, K, V, KT, VT)
    ds = load(ds_last + head, at)
    for step in range(tl.cdiv(T, C)):
        i = tl.cdiv(T, C) - 1 - step
        keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, j, T, H, V, C, VT)
        segment, last = segments(reset, i, batch, T, C, RESET)
        strict, causal = make_masks(segment, C, RESET)
        scale_r, scale_a, bk, enter, leave, whole = make_scale(load(log_w_ptr, keys), segment, last, C, RESET)
        a, b, k = mid(a_ptr, keys, scale_a, HALF), mid(b_ptr, keys, bk, HALF), mid(k_ptr, keys, bk, HALF)
        ab, ak = scores(a, b, strict, HALF), scores(a, k, strict, HALF)
        tl.debug_barrier()
        r = mid(r_ptr, keys, scale_r, HALF)
        rb, rk = scores(r, b, causal, HALF), scores(r, k, causal, HALF)
        tl.debug_barrier()
        inverse = unit_lower_inverse(ab, C, HALF)
        dy, to_state = load(dy_ptr, values), tl.trans(ds)
        du = dot(tl.trans(rb), dy, HALF) + dot(load(b_ptr, keys).to(tl.float32) * bk * leave, to_state, HALF)
        dz = rounded(fine_dot(tl.trans(inverse), du, HALF), HALF)
        dv = dot(tl.trans(rk), dy, HALF) + dot(load(k_ptr, keys).to(tl.float32) * bk * leave, to_state, HALF)
        store(dv_ptr, values, dv + dot(tl.trans(ak), dz, HALF))
        tl.debug_barrier()
        first = i // EVERY
        s = load(states + first * B * H * V * K + head, at).to(tl.float32)
        for past in range(first * EVERY, i):
            old_keys, old_values = tile(past, batch, h, 0, T, H, K, C, KT), tile(past, batch, h, j, T, H, V, C, VT)
            old, end = segments(reset, past, batch, T, C, RESET)
            _, _, scale, _, out, whole = make_scale(load(log_w_ptr, old_keys), old, end, C, RESET)
            writes = load(b_ptr, old_keys), load(k_ptr, old_keys), load(u_ptr, old_values), load(v_ptr, old_values)
            s = advance(s, writes[0], writes[1], writes[2], writes[3], scale, out, whole, HALF)
        scale_r, scale_a, bk, enter, leave, whole = make_scale(load(log_w_ptr, keys), segment, last, C, RESET)
        b, k = mid(b_ptr, keys, bk, HALF), mid(k_ptr, keys, bk, HALF)
        u, v = load(u_ptr, values), load(v_ptr, values)
        if RESET and not HALF:
            dy = load(dy_ptr, values)
        r_mid = load(r_ptr, keys).to(tl.float32) * scale_r
        before = ds * whole + dot(tl.trans(dy), r_mid * enter, HALF)
        d_rb, d_rk = scores(dy, u, causal, HALF), scores(dy, v, causal, HALF)
        g = dot(d_rb, b, HALF) + dot(d_rk, k, HALF) + dot(dy, s, HALF) * enter
        parts = tile(i, tl.program_id(1) * B + batch, h, 0, T, H, K, C, KT)
        store(dr_ptr, parts, g * scale_r)
        terms = product(rounded(r_mid, HALF), g)
        tl.debug_barrier()
        a_mid = load(a_ptr, keys).to(tl.float32) * scale_a
        before += dot(tl.trans(dz), a_mid * enter, HALF)
        d_ab, d_ak = scores(dz, u, strict, HALF), scores(dz, v, strict, HALF)
        g = dot(d_ab, b, HALF) + dot(d_ak, k, HALF) + dot(dz, s, HALF) * enter
        store(da_ptr, parts, g * scale_a)
        at_end = tl.sum(s * ds, 0)[None, :] * whole
        through_a = product(rounded(a_mid, HALF), g)
        tl.debug_barrier()
        r, a = mid(r_ptr, keys, scale_r, HALF), mid(a_ptr, keys, scale_a, HALF)
        b, k = mid(b_ptr, keys, bk, HALF), mid(k_ptr, keys, bk, HALF)
        u, v = load(u_ptr, values), load(v_ptr, values)
        leaving = dot(u, ds, HALF) * leave
        g = dot(tl.trans(d_ab), a, HALF) + dot(tl.trans(d_rb), r, HALF) + leaving
        store(db_ptr, parts, g * bk)
        at_end += tl.sum(product(b, leaving), 0)[None, :]
        terms += through_a - product(b, g)
        leaving = dot(v, ds, HALF) * leave
        g = dot(tl.trans(d_ak), a, HALF) + dot(tl.trans(d_rk), r, HALF) + leaving
        store(dk_ptr, parts, g * bk)
        at_end += tl.sum(product(k, leaving), 0)[None, :]
        terms -= product(k, g)
        later = tl.sum(terms, 0)[None, :] - tl.cumsum(terms, 0) + terms
        store(dlog_w_ptr, parts, later - through_a + at_end)
        ds = before
    store(ds0 + head, at, ds)
