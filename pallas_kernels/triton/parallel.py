"""The programs of `pallas_kernels.gpu.parallel` and `gpu.gradients`, divided over time, in the Triton language.

Conventions and helpers as in `pallas_kernels.triton.kernels`; C is 32. Beside the arrays of the op there are, for each
of the n chunks, (I - A_ab)^-1 - I in `inverse` [n, B, H, C, C], the change of a state in `step` [n, B, H, K, K] and
`change` [n, B, H, V, K], and factors of decay [n, B, H, 3, K]. One program per (head, chunk, sequence), but in `scan`.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import triton
import triton.language as tl

from pallas_kernels.triton.kernels import dot, make_masks, rounded, segments

ENTER, LEAVE, WHOLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Rows of the factors of a chunk."""


@triton.jit
def tile(i, b, h, start, T, H, N, C: tl.constexpr, NT: tl.constexpr):
    """(first, offsets from it, mask) of columns start.. of chunk i in [B, T, H, N]; b is int64, and so is the first."""
    row, col = tl.arange(0, C), start + tl.arange(0, NT)
    return ((b * T + i * C) * H + h) * N, row[:, None] * (H * N) + col[None, :], matrix_mask(T - i * C, N, row, col)


@triton.jit
def matrix_mask(rows, columns, row, col):
    """Whether row < rows and col < columns."""
    return (row[:, None] < rows) & (col[None, :] < columns)


@triton.jit
def load(pointer, where):
    """The tile at (first, offsets, mask), 0 outside."""
    return tl.load(pointer + where[0] + where[1], mask=where[2], other=0.0)


@triton.jit
def store(pointer, where, x):
    """Writes the tile to (first, offsets, mask)."""
    tl.store(pointer + where[0] + where[1], x.to(pointer.dtype.element_ty), mask=where[2])


@triton.jit
def each_chunk(i, b, h, B, H, R: tl.constexpr, N: tl.constexpr, start, RT: tl.constexpr, NT: tl.constexpr):
    """(first, offsets from it, mask) of rows start.. of the matrix of chunk i in [n, B, H, R, N]; b is int64."""
    row, col = start + tl.arange(0, RT), tl.arange(0, NT)
    return ((i * B + b) * H + h) * (R * N), row[:, None] * N + col[None, :], matrix_mask(R, N, row, col)


@triton.jit
def factor(factors, i, b, h, which, B, H, K: tl.constexpr, KT: tl.constexpr):
    """A factor of chunk i, [1, K]."""
    col = tl.arange(0, KT)
    first = (((i * B + b) * H + h) * 3 + which) * K
    return tl.load(factors + first + col, mask=col < K, other=0.0)[None, :]


@triton.jit
def store_factor(factors, i, b, h, which, x, B, H, K: tl.constexpr, KT: tl.constexpr):
    """Writes a factor [K] of chunk i."""
    col = tl.arange(0, KT)
    tl.store(factors + (((i * B + b) * H + h) * 3 + which) * K + col, x, mask=col < K)


@triton.jit
def row_sums(weights, x, HALF: tl.constexpr):
    """weights x for whole numbers as weights: as exact as float32, in two parts of a float32 x."""
    if HALF:
        first = x.to(tl.bfloat16)
        sums = tl.dot(weights.to(tl.bfloat16), first)
        if x.dtype == tl.float32:
            sums = tl.dot(weights.to(tl.bfloat16), (x - first.to(tl.float32)).to(tl.bfloat16), sums)
        return sums
    else:
        return dot(weights, x, HALF)


@triton.jit
def decays(log_w, C: tl.constexpr, HALF: tl.constexpr):
    """Factors of r, a, and b and k relative to the middle of the chunk, float32 [C, K]."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    weights = tl.where(col <= row, 1.0, 0.0) - tl.where(col <= (C - 1) // 2, 1.0, 0.0)
    c = row_sums(weights, log_w, HALF)
    return tl.exp(c), tl.exp(c - log_w.to(tl.float32)), tl.exp(-c)


@triton.jit
def operand(pointer, where, decay, HALF: tl.constexpr):
    """The tile scaled to the middle of the chunk, as products take it."""
    return rounded(load(pointer, where).to(tl.float32) * decay, HALF)


@triton.jit
def scores(rows, columns, mask, HALF: tl.constexpr):
    """rows columns' under the mask, as products take it."""
    return rounded(tl.where(mask, dot(rows, tl.trans(columns), HALF), 0.0), HALF)


@triton.jit
def only(x, rows, RESET: tl.constexpr):
    """x in these rows, else 0; all of x without resets."""
    if RESET:
        return tl.where(rows, x, 0.0).to(x.dtype)
    else:
        return x


@triton.jit
def rest_of_inverse(lower, C: tl.constexpr, HALF: tl.constexpr):
    """(I - lower)^-1 - I by doubling blocks."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    rest = tl.where((row >> 1 == col >> 1) & (row > col), lower, 0.0)
    for level in tl.static_range(1, 7):
        if (1 << level) < C:
            below = (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)
            step = tl.where(below, lower, 0.0)
            step += dot(step, rest, HALF)
            rest += step + dot(rest, step, HALF)
    return rest


@triton.jit
def prepare(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, dy_ptr, inverse, step, change, factors,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """How the state changes over a chunk, or with BACKWARD its gradient.

    The forward reads neither r nor dy, the backward neither k nor v.
    """
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    segment, last = segments(reset, i, batch, T, C, RESET)
    head, tail = segment[:, None] == 0, segment[:, None] == last
    strict, causal = make_masks(segment, C, RESET)
    log_w = load(log_w_ptr, keys)
    scale_r, scale_a, bk = decays(log_w, C, HALF)
    a, b = operand(a_ptr, keys, scale_a, HALF), operand(b_ptr, keys, bk, HALF)
    rest = rest_of_inverse(tl.where(strict, dot(a, tl.trans(b), HALF), 0.0), C, HALF)
    store(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C), rest)
    g = log_w.to(tl.float32)
    middle, end = tl.sum(tl.where(tl.arange(0, C)[:, None] <= (C - 1) // 2, g, 0.0), 0), tl.sum(g, 0)
    enter, leave, whole = tl.exp(middle), tl.exp(end - middle), tl.exp(end)
    store_factor(factors, i, batch, h, ENTER, enter, B, H, K, KT)
    store_factor(factors, i, batch, h, LEAVE, leave, B, H, K, KT)
    store_factor(factors, i, batch, h, WHOLE, tl.where(last == 0, whole, 0.0), B, H, K, KT)
    first, out = only(a, head, RESET), only(b, tail, RESET)
    w = rounded(first.to(tl.float32) + dot(rest, first, HALF), HALF)
    steps = each_chunk(i, batch, h, B, H, K, K, 0, KT, KT)
    changes = each_chunk(i, batch, h, B, H, V, K, 0, VT, KT)
    if BACKWARD:
        store(step, steps, dot(tl.trans(out), w, HALF) * enter[None, :])
        r = operand(r_ptr, keys, scale_r, HALF)
        reads = only(r, head, RESET).to(tl.float32) + dot(scores(r, b, causal, HALF), w, HALF)
        store(change, changes, dot(tl.trans(load(dy_ptr, values)), reads, HALF) * enter[None, :])
    else:
        store(step, steps, dot(tl.trans(w), out, HALF) * leave[None, :])
        k, v = operand(k_ptr, keys, bk, HALF), load(v_ptr, values)
        known = dot(scores(a, k, strict, HALF), v, HALF)
        u = known + dot(rest, known, HALF)
        total = dot(tl.trans(u), out, HALF) + dot(tl.trans(v), only(k, tail, RESET), HALF)
        store(change, changes, total * leave[None, :])


@triton.jit
def scan(
    step, change, factors, first, last, states,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, REVERSE: tl.constexpr, SAVE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The state after all chunks from `first`, or with REVERSE the gradient before them; one block of values. With SAVE
    `states` takes that before each chunk, or the gradient after it."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    at = each_chunk(0, batch, h, B, H, V, K, j, VT, KT)
    s = load(first, at)
    for count in tl.range(0, tl.cdiv(T, C), num_stages=STAGES):
        i = tl.cdiv(T, C) - 1 - count if REVERSE else count
        here = each_chunk(i, batch, h, B, H, V, K, j, VT, KT)
        if SAVE:
            store(states, here, s)
        inward = s * factor(factors, i, batch, h, LEAVE if REVERSE else ENTER, B, H, K, KT)
        whole = factor(factors, i, batch, h, WHOLE, B, H, K, KT)
        matrix = load(step, each_chunk(i, batch, h, B, H, K, K, 0, KT, KT))
        s = s * whole + load(change, here).to(tl.float32) + dot(inward, matrix, HALF)
    store(last, at, s)


@triton.jit
def solved(a, k, v, s, rest, head, strict, HALF: tl.constexpr, RESET: tl.constexpr):
    """U, of which row t is S_{t-1} a_t, from the state scaled to the middle; as products take it."""
    known = only(dot(a, tl.trans(s), HALF), head, RESET) + dot(scores(a, k, strict, HALF), v, HALF)
    return rounded(known + dot(rest, known, HALF), HALF)


@triton.jit
def outputs(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, inverse, factors, states, y_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it."""
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    segment, _ = segments(reset, i, batch, T, C, RESET)
    head = segment[:, None] == 0
    strict, causal = make_masks(segment, C, RESET)
    scale_r, scale_a, bk = decays(load(log_w_ptr, keys), C, HALF)
    s = load(states, each_chunk(i, batch, h, B, H, V, K, 0, VT, KT)).to(tl.float32)
    s = rounded(s * factor(factors, i, batch, h, ENTER, B, H, K, KT), HALF)
    a, k, v = operand(a_ptr, keys, scale_a, HALF), operand(k_ptr, keys, bk, HALF), load(v_ptr, values)
    rest = load(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C))
    u = solved(a, k, v, s, rest, head, strict, HALF, RESET)
    r, b = operand(r_ptr, keys, scale_r, HALF), operand(b_ptr, keys, bk, HALF)
    y = only(dot(r, tl.trans(s), HALF), head, RESET) + dot(scores(r, k, causal, HALF), v, HALF)
    store(y_ptr, values, y + dot(scores(r, b, causal, HALF), u, HALF))


@triton.jit
def product(operand, x):
    """In float32, with the operand that the matrix products used."""
    return operand.to(tl.float32) * x


@triton.jit
def gradients(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, inverse, factors, states, d_states, dy_ptr,
    dr_ptr, dlog_w_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """The gradients of (r, log_w, k, v, a, b) of a chunk from the state before it and the gradient of the one after.

    Everything is loaded and scaled again after each barrier, which is cheaper than the registers to keep it.
    """
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    segment, last = segments(reset, i, batch, T, C, RESET)
    head, tail = segment[:, None] == 0, segment[:, None] == last
    strict, causal = make_masks(segment, C, RESET)
    scale_r, scale_a, bk = decays(load(log_w_ptr, keys), C, HALF)
    at = each_chunk(i, batch, h, B, H, V, K, 0, VT, KT)
    s, ds = load(states, at).to(tl.float32), load(d_states, at).to(tl.float32)
    s, leave = s * factor(factors, i, batch, h, ENTER, B, H, K, KT), factor(factors, i, batch, h, LEAVE, B, H, K, KT)
    total = tl.sum(s * ds, 0)[None, :] * leave
    if RESET:
        total = tl.where(last == 0, total, 0.0)
    s, ds = rounded(s, HALF), rounded(ds * leave, HALF)
    a, k, v = operand(a_ptr, keys, scale_a, HALF), operand(k_ptr, keys, bk, HALF), load(v_ptr, values)
    rest, dy = load(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C)), load(dy_ptr, values)
    u = solved(a, k, v, s, rest, head, strict, HALF, RESET)
    r, b = operand(r_ptr, keys, scale_r, HALF), operand(b_ptr, keys, bk, HALF)
    du = dot(tl.trans(scores(r, b, causal, HALF)), dy, HALF) + only(dot(b, tl.trans(ds), HALF), tail, RESET)
    dz = rounded(du + dot(tl.trans(rest), du, HALF), HALF)
    dv = dot(tl.trans(scores(r, k, causal, HALF)), dy, HALF) + only(dot(k, tl.trans(ds), HALF), tail, RESET)
    store(dv_ptr, values, dv + dot(tl.trans(scores(a, k, strict, HALF)), dz, HALF))
    tl.debug_barrier()
    scale_r, scale_a, bk = decays(load(log_w_ptr, keys), C, HALF)
    a, b = operand(a_ptr, keys, scale_a, HALF), operand(b_ptr, keys, bk, HALF)
    r, k = operand(r_ptr, keys, scale_r, HALF), operand(k_ptr, keys, bk, HALF)
    v, dy = load(v_ptr, values), load(dy_ptr, values)
    d_rb, d_rk = scores(dy, u, causal, HALF), scores(dy, v, causal, HALF)
    g = dot(d_rb, b, HALF) + dot(d_rk, k, HALF) + only(dot(dy, s, HALF), head, RESET)
    store(dr_ptr, keys, g * scale_r)
    terms = product(r, g)
    d_ab, d_ak = scores(dz, u, strict, HALF), scores(dz, v, strict, HALF)
    g = dot(d_ab, b, HALF) + dot(d_ak, k, HALF) + only(dot(dz, s, HALF), head, RESET)
    store(da_ptr, keys, g * scale_a)
    through_a = product(a, g)
    leaving = only(dot(u, ds, HALF), tail, RESET)
    g = dot(tl.trans(d_ab), a, HALF) + dot(tl.trans(d_rb), r, HALF) + leaving
    store(db_ptr, keys, g * bk)
    through_state = product(b, leaving)
    terms += through_a - product(b, g)
    leaving = only(dot(v, ds, HALF), tail, RESET)
    g = dot(tl.trans(d_ak), a, HALF) + dot(tl.trans(d_rk), r, HALF) + leaving
    store(dk_ptr, keys, g * bk)
    through_state += product(k, leaving)
    terms -= product(k, g)
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    later = row_sums(tl.where(col >= row, 1.0, 0.0), terms, HALF)
    store(dlog_w_ptr, keys, later - through_a + total + tl.sum(through_state, 0)[None, :])
