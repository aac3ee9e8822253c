"""The programs of `pallas_kernels.gpu.kernels` in the Triton language; needs the package `triton`.

One program per (head, block of the value axis, sequence). Arrays are contiguous: [B, T, H, K], [B, T, H, V], states
[B, H, V, K] and saved states [n, B, H, V, K]; `reset` is int32 [B, T] and anything where RESET is false. Constants:
B, T, H, K, V are sizes, KT and VT tile sizes (powers of two), C tokens per chunk, EVERY chunks per saved state, HALF
whether products round their operands to bfloat16 (else float32 in six products of bfloat16 parts).
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import triton
import triton.language as tl

EXACT = tl.constexpr("bf16x6")
"""How products of float32 are computed."""


@triton.jit
def dot(x, y, HALF: tl.constexpr):
    """x y with rounded operands and float32 sums."""
    if HALF:
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    else:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision=EXACT)


@triton.jit
def fine_dot(x, y, HALF: tl.constexpr):
    """x y of float32 tiles for the inverse and what it is applied to."""
    if HALF:
        return tl.dot(x, y, input_precision="tf32")
    else:
        return tl.dot(x, y, input_precision=EXACT)


@triton.jit
def rounded(x, HALF: tl.constexpr):
    """x as products take it."""
    if HALF:
        return x.to(tl.bfloat16)
    else:
        return x.to(tl.float32)


@triton.jit
def tile(i, b, h, start, T, H, N, C: tl.constexpr, NT: tl.constexpr):
    """(offsets, mask) of columns start.. of chunk i in [B, T, H, N]."""
    row, col = i * C + tl.arange(0, C), start + tl.arange(0, NT)
    offsets = ((b * T + row[:, None]) * H + h) * N + col[None, :]
    return offsets, (row[:, None] < T) & (col[None, :] < N)


@triton.jit
def state_tile(b, h, start, H, K, V, KT: tl.constexpr, VT: tl.constexpr):
    """(offsets, mask) of rows start.. of one state in [B, H, V, K]."""
    row, col = start + tl.arange(0, VT), tl.arange(0, KT)
    return ((b * H + h) * V + row[:, None]) * K + col[None, :], (row[:, None] < V) & (col[None, :] < K)


@triton.jit
def load(pointer, where):
    """The tile at (offsets, mask), 0 outside."""
    return tl.load(pointer + where[0], mask=where[1], other=0.0)


@triton.jit
def store(pointer, where, x):
    """Writes the tile to (offsets, mask)."""
    tl.store(pointer + where[0], x.to(pointer.dtype.element_ty), mask=where[1])


@triton.jit
def segments(reset, i, b, T, C: tl.constexpr, RESET: tl.constexpr):
    """Resets up to each token of the chunk, int32 [C], and in all of it."""
    row = i * C + tl.arange(0, C)
    if RESET:
        flag = tl.load(reset + b * T + row, mask=row < T, other=0)
        return tl.cumsum(flag, 0), tl.sum(flag, 0)
    else:
        return row * 0, 0


@triton.jit
def make_scale(log_w, segment, last, C: tl.constexpr, RESET: tl.constexpr):
    """Decay factors of r, a, and b and k relative to the middle; of entering, leaving, and crossing the chunk."""
    g = log_w.to(tl.float32)
    c = tl.cumsum(g, 0)
    middle = tl.sum(tl.where(tl.arange(0, C)[:, None] <= (C - 1) // 2, g, 0.0), 0)[None, :]
    end = tl.sum(g, 0)[None, :]
    enter, leave, whole = tl.exp(middle), tl.exp(end - middle), tl.exp(end)
    if RESET:
        enter = tl.where(segment[:, None] == 0, enter, 0.0)
        leave = tl.where(segment[:, None] == last, leave, 0.0)
        whole = tl.where(last == 0, whole, 0.0)
    return tl.exp(c - middle), tl.exp(c - g - middle), tl.exp(middle - c), enter, leave, whole


@triton.jit
def make_masks(segment, C: tl.constexpr, RESET: tl.constexpr):
    """(s < t, s <= t) within one segment."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    strict, causal = col < row, col <= row
    if RESET:
        same = segment[:, None] == segment[None, :]
        strict, causal = strict & same, causal & same
    return strict, causal


@triton.constexpr_function
def part_of(size, half):
    """How much of an axis a product of float32 adds up at once: operands of more take too many registers."""
    return size if half else min(size, 32)


@triton.jit
def within(scores, mask):
    """The scores under the mask, else 0."""
    return tl.where(mask, scores, 0.0)


@triton.jit
def scores(loader, stored, mask, HALF: tl.constexpr):
    """[C, C]: what token t (row) loads of what token s (column) stored."""
    return within(dot(loader, tl.trans(stored), HALF), mask)


@triton.jit
def unit_lower_inverse(lower, C: tl.constexpr, HALF: tl.constexpr):
    """(I - lower)^-1 by doubling blocks; see `pallas_kernels.chunked.math`."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    below = (row >> 1 == col >> 1) & (row > col)
    inverse = tl.where(row == col, 1.0, 0.0) + tl.where(below, lower, 0.0)
    for level in tl.static_range(1, 7):
        if (1 << level) < C:
            below = (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)
            inverse += fine_dot(inverse, fine_dot(tl.where(below, lower, 0.0), inverse, HALF), HALF)
    return inverse


@triton.jit
def advance(s, b, k, u, v, bk, leave, whole, HALF: tl.constexpr):
    """The state after the chunk from the one before."""
    b_out, k_out = b.to(tl.float32) * bk * leave, k.to(tl.float32) * bk * leave
    return s * whole + dot(tl.trans(u), b_out, HALF) + dot(tl.trans(v), k_out, HALF)


@triton.jit
def forward(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, s0, y_ptr, s_last, states, u_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, EVERY: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
    SAVE: tl.constexpr, SAVE_U: tl.constexpr,
):  # fmt: skip
    """y and the last state; with SAVE also states [n, B, H, V, K] every EVERY chunks, with SAVE_U u."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    at = state_tile(batch, h, j, H, K, V, KT, VT)
    s = load(s0, at)
    for i in range(tl.cdiv(T, C)):
        keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, j, T, H, V, C, VT)
        if SAVE and i % EVERY == 0:
            store(states + (i // EVERY) * B * H * V * K, at, s)
        segment, last = segments(reset, i, batch, T, C, RESET)
        scale_r, scale_a, bk, enter, leave, whole = make_scale(load(log_w_ptr, keys), segment, last, C, RESET)
        strict, causal = make_masks(segment, C, RESET)
        b, k = load(b_ptr, keys), load(k_ptr, keys)
        b_mid, k_mid = b.to(tl.float32) * bk, k.to(tl.float32) * bk
        a_mid = load(a_ptr, keys).to(tl.float32) * scale_a
        ab = scores(a_mid, b_mid, strict, HALF)
        inverse = unit_lower_inverse(ab, C, HALF)
        v, state = load(v_ptr, values), tl.trans(s)
        ak = scores(a_mid, k_mid, strict, HALF)
        tl.debug_barrier()
        read = dot(a_mid * enter, state, HALF) + dot(ak, v, HALF)
        u = rounded(fine_dot(inverse, read, HALF), HALF)
        if SAVE_U:
            store(u_ptr, values, u)
        if RESET and not HALF:
            tl.debug_barrier()
            b, k = load(b_ptr, keys), load(k_ptr, keys)
            b_mid, k_mid = b.to(tl.float32) * bk, k.to(tl.float32) * bk
        r_mid = load(r_ptr, keys).to(tl.float32) * scale_r
        y = dot(r_mid * enter, state, HALF) + dot(scores(r_mid, b_mid, causal, HALF), u, HALF)
        store(y_ptr, values, y + dot(scores(r_mid, k_mid, causal, HALF), v, HALF))
        s = advance(s, b, k, u, v, bk, leave, whole, HALF)
    store(s_last, at, s)


@triton.jit
def state_backward(
    r_ptr, log_w_ptr, a_ptr, b_ptr, reset, dy_ptr, ds_last, ds0,
    T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr,
    C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """The gradient of the first state; reads neither k nor v nor any state."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    at = state_tile(batch, h, j, H, K, V, KT, VT)
    ds = load(ds_last, at)
    for step in range(tl.cdiv(T, C)):
        i = tl.cdiv(T, C) - 1 - step
        keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, j, T, H, V, C, VT)
        segment, last = segments(reset, i, batch, T, C, RESET)
        scale_r, scale_a, bk, enter, leave, whole = make_scale(load(log_w_ptr, keys), segment, last, C, RESET)
        strict, causal = make_masks(segment, C, RESET)
        b_mid = load(b_ptr, keys).to(tl.float32) * bk
        a_mid = load(a_ptr, keys).to(tl.float32) * scale_a
        inverse = unit_lower_inverse(scores(a_mid, b_mid, strict, HALF), C, HALF)
        r_mid, dy = load(r_ptr, keys).to(tl.float32) * scale_r, load(dy_ptr, values)
        rb = scores(r_mid, b_mid, causal, HALF)
        du = dot(tl.trans(rb), dy, HALF) + dot(b_mid * leave, tl.trans(ds), HALF)
        dz = fine_dot(tl.trans(inverse), du, HALF)
        ds = ds * whole + dot(tl.trans(dy), r_mid * enter, HALF) + dot(tl.trans(dz), a_mid * enter, HALF)
    store(ds0, at, ds)
