"""The programs of `pallas_kernels.gpu.parallel` and `gpu.gradients`, divided over time, in the Triton language.

Conventions and helpers as in `pallas_kernels.triton.kernels`; C is 32. Beside the arrays of the op there are, for each
of the n chunks, (I - A_ab)^-1 - I in `inverse` [n, B, H, C, C], the change of a state in `step` [n, B, H, K, K] and
`change` [n, B, H, V, K], factors of decay [n, B, H, 3, K], and the matrices `weights` [4, C, C] of `gpu.parallel`. The
state before a chunk is stored as it is, the gradient of the one after it scaled to the middle. One program per (head,
chunk, sequence), but in `scan`.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import triton
import triton.language as tl

from pallas_kernels.triton.kernels import dot, make_masks, rounded, segments

ENTER, LEAVE, WHOLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Rows of the factors of a chunk."""
FROM_MIDDLE, IDENTITY, ONWARD, ENDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Matrices of the weights."""


@triton.jit
def tile(i, b, h, start, T, H, N, C: tl.constexpr, NT: tl.constexpr):
    """(first, offsets from it, mask) of columns start.. of chunk i in [B, T, H, N]; b is int64, and so is the first."""
    row, col = tl.arange(0, C), start + tl.arange(0, NT)
    return ((b * T + i * C) * H + h) * N, row[:, None] * (H * N) + col[None, :], matrix_mask(T - i * C, N, row, col)


@triton.jit
def turned(i, b, h, T, H, N, C: tl.constexpr, NT: tl.constexpr):
    """`tile`, transposed: to turn what is loaded takes two barriers."""
    row, col = tl.arange(0, C), tl.arange(0, NT)
    return ((b * T + i * C) * H + h) * N, row[None, :] * (H * N) + col[:, None], matrix_mask(N, T - i * C, col, row)


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
def each_turned(i, b, h, B, H, R: tl.constexpr, N: tl.constexpr, RT: tl.constexpr, NT: tl.constexpr):
    """`each_chunk` from row 0 on, transposed."""
    row, col = tl.arange(0, RT), tl.arange(0, NT)
    return ((i * B + b) * H + h) * (R * N), row[None, :] * N + col[:, None], matrix_mask(N, R, col, row)


@triton.jit
def summing(weights, which, C: tl.constexpr, R: tl.constexpr):
    """The first R rows of one of the weights."""
    row, col = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    return tl.load(weights + which * (C * C) + row * C + col)


@triton.jit
def factor(factors, i, b, h, which, B, H, K: tl.constexpr, KT: tl.constexpr):
    """A factor of chunk i, [1, K]."""
    col = tl.arange(0, KT)
    first = (((i * B + b) * H + h) * 3 + which) * K
    return tl.load(factors + first + col, mask=col < K, other=0.0)[None, :]


@triton.jit
def row_sums(weights, x, HALF: tl.constexpr):
    """weights x for whole numbers as weights: as exact as float32, in bfloat16 parts of x.

    One of a bfloat16 x, two of a float32 one beside bfloat16 products, three beside float32 ones.
    """
    weights, first = weights.to(tl.bfloat16), x.to(tl.bfloat16)
    sums = tl.dot(weights, first)
    if x.dtype == tl.float32:
        rest = x - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        sums = tl.dot(weights, second, sums)
        if not HALF:
            sums = tl.dot(weights, (rest - second.to(tl.float32)).to(tl.bfloat16), sums)
    return sums


@triton.jit
def decays(log_w, weights, identity, C: tl.constexpr, HALF: tl.constexpr):
    """Factors of r, a, and b and k relative to the middle of the chunk, float32 [C, K]."""
    c, each = row_sums(summing(weights, FROM_MIDDLE, C, C), log_w, HALF), row_sums(identity, log_w, HALF)
    return tl.exp(c), tl.exp(c - each), tl.exp(-c)


@triton.jit
def operand(x, decay, identity, HALF: tl.constexpr):
    """The tile scaled to the middle of the chunk, as products take it, by way of a product that leaves it in place."""
    return pinned(dot(identity, x, HALF) * decay, HALF)


@triton.jit
def pinned(x, HALF: tl.constexpr):
    """x as products take it, and kept so: the compiler would keep the float32 and round it before each use."""
    if HALF:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x.to(tl.bfloat16)], tl.bfloat16, True, 2)
    else:
        return rounded(x, HALF)


@triton.jit
def scores(rows, columns, mask, HALF: tl.constexpr):
    """rows columns under the mask, as products take it."""
    return pinned(tl.where(mask, dot(rows, columns, HALF), 0.0), HALF)


@triton.jit
def make_seen(segment, C: tl.constexpr, RESET: tl.constexpr):
    """Which token (row) is seen by which (column) of those after it, and of those from it on."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    before, upto = col > row, col >= row
    if RESET:
        same = segment[:, None] == segment[None, :]
        before, upto = before & same, upto & same
    return before, upto


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
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, weights, dy_ptr, inverse, step, change, factors,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """How the state changes over a chunk, or with BACKWARD its gradient, both relative to the middle.

    The forward reads neither r nor dy, the backward neither k nor v.
    """
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    segment, last = segments(reset, i, batch, T, C, RESET)
    head, tail = segment[:, None] == 0, segment[:, None] == last
    strict, causal = make_masks(segment, C, RESET)
    log_w, a, b = load(log_w_ptr, keys), load(a_ptr, keys), load(b_ptr, keys)
    if BACKWARD:
        other, v = load(r_ptr, keys), load(dy_ptr, values)
    else:
        other, v = load(k_ptr, keys), load(v_ptr, values)
    identity = summing(weights, IDENTITY, C, C)
    scale_r, scale_a, bk = decays(log_w, weights, identity, C, HALF)
    a, b = operand(a, scale_a, identity, HALF), operand(b, bk, identity, HALF)
    other = operand(other, scale_r if BACKWARD else bk, identity, HALF)
    b_t = tl.trans(b)
    ab = tl.where(strict, dot(a, b_t, HALF), 0.0)
    if BACKWARD:
        pairs = scores(other, b_t, causal, HALF)
    else:
        pairs = scores(a, tl.trans(other), strict, HALF)
    rest = pinned(rest_of_inverse(ab, C, HALF), HALF)
    first, out = only(a, head, RESET), only(b, tail, RESET)
    w = pinned(first.to(tl.float32) + dot(rest, first, HALF), HALF)
    if BACKWARD:
        moves = dot(tl.trans(out), w, HALF)
        total = dot(tl.trans(v), only(other, head, RESET).to(tl.float32) + dot(pairs, w, HALF), HALF)
    else:
        moves = dot(tl.trans(w), out, HALF)
        known = dot(pairs, v, HALF)
        u = known + dot(rest, known, HALF)
        total = dot(tl.trans(u), out, HALF) + dot(tl.trans(v), only(other, tail, RESET), HALF)
    ends = tl.exp(row_sums(summing(weights, ENDS, C, 16), log_w, HALF))
    if RESET:
        ends = tl.where((tl.arange(0, 16)[:, None] == WHOLE) & (last != 0), 0.0, ends)
    store(factors, each_chunk(i, batch, h, B, H, 3, K, 0, 16, KT), ends)
    store(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C), rest)
    store(step, each_chunk(i, batch, h, B, H, K, K, 0, KT, KT), moves)
    store(change, each_chunk(i, batch, h, B, H, V, K, 0, VT, KT), total)


@triton.jit
def scan(
    step, change, factors, first, last, states,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, REVERSE: tl.constexpr, SAVE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The state after all chunks from `first`, or with REVERSE the gradient before them; one block of values. With SAVE
    `states` takes that before each chunk, or the gradient after it, scaled to the middle."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    at = each_chunk(0, batch, h, B, H, V, K, j, VT, KT)
    s = load(first, at)
    for count in tl.range(0, tl.cdiv(T, C), num_stages=STAGES):
        i = tl.cdiv(T, C) - 1 - count if REVERSE else count
        here = each_chunk(i, batch, h, B, H, V, K, j, VT, KT)
        inward = rounded(s * factor(factors, i, batch, h, LEAVE if REVERSE else ENTER, B, H, K, KT), HALF)
        if SAVE:
            store(states, here, inward if REVERSE else s)
        whole = factor(factors, i, batch, h, WHOLE, B, H, K, KT)
        outward = factor(factors, i, batch, h, ENTER if REVERSE else LEAVE, B, H, K, KT)
        matrix = load(step, each_chunk(i, batch, h, B, H, K, K, 0, KT, KT))
        s = s * whole + (load(change, here).to(tl.float32) + dot(inward, matrix, HALF)) * outward
    store(last, at, s)


@triton.jit
def outputs(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, weights, inverse, factors, states, y_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it."""
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    segment, _ = segments(reset, i, batch, T, C, RESET)
    head = segment[:, None] == 0
    strict, causal = make_masks(segment, C, RESET)
    v, s_t = load(v_ptr, values), load(states, each_turned(i, batch, h, B, H, V, K, VT, KT))
    rest = load(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C))
    log_w, a, k, b, r = (
        load(log_w_ptr, keys), load(a_ptr, keys), load(k_ptr, keys), load(b_ptr, keys), load(r_ptr, keys)
    )  # fmt: skip
    enter, identity = factor(factors, i, batch, h, ENTER, B, H, K, KT), summing(weights, IDENTITY, C, C)
    scale_r, scale_a, bk = decays(log_w, weights, identity, C, HALF)
    a_in, r_in = operand(a, scale_a * enter, identity, HALF), operand(r, scale_r * enter, identity, HALF)
    a, k, b, r = (
        operand(a, scale_a, identity, HALF), operand(k, bk, identity, HALF), operand(b, bk, identity, HALF),
        operand(r, scale_r, identity, HALF),
    )  # fmt: skip
    k_t, b_t = tl.trans(k), tl.trans(b)
    ak, rk, rb = scores(a, k_t, strict, HALF), scores(r, k_t, causal, HALF), scores(r, b_t, causal, HALF)
    known = only(dot(a_in, s_t, HALF), head, RESET) + dot(ak, v, HALF)
    y = only(dot(r_in, s_t, HALF), head, RESET) + dot(rk, v, HALF)
    u = known + dot(rest, known, HALF)
    store(y_ptr, values, y + dot(rb, u, HALF))


@triton.jit
def product(operand, x):
    """In float32, with the operand that the matrix products used."""
    return operand.to(tl.float32) * x


@triton.jit
def gradients(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, weights, inverse, factors, states, d_states, dy_ptr,
    dr_ptr, dlog_w_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """The gradients of (r, log_w, k, v, a, b) of a chunk from the state before it and the gradient of the one after.

    As in `pallas_kernels.gpu.gradients`, products that do not wait for each other stand together, and what is
    transposed is loaded so or is a product of its own. All is stored at the end: the compiler moves a loaded tile to
    shared memory at once only if no store stands before its use. All products of one left operand stand together, and
    `bk` is 1 / `scale_r`, so that fewer registers are held.
    """
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    values_t = turned(i, batch, h, T, H, V, C, VT)
    segment, last = segments(reset, i, batch, T, C, RESET)
    head, tail = segment[:, None] == 0, segment[:, None] == last
    strict, causal = make_masks(segment, C, RESET)
    seen_before, seen = make_seen(segment, C, RESET)
    onward, identity = summing(weights, ONWARD, C, C), summing(weights, IDENTITY, C, C)
    v, v_t, d, d_t = load(v_ptr, values), load(v_ptr, values_t), load(dy_ptr, values), load(dy_ptr, values_t)
    rest = load(inverse, each_chunk(i, batch, h, B, H, C, C, 0, C, C))
    rest_t = load(inverse, each_turned(i, batch, h, B, H, C, C, C, C))
    at, at_t = each_chunk(i, batch, h, B, H, V, K, 0, VT, KT), each_turned(i, batch, h, B, H, V, K, VT, KT)
    s, s_t, ds, ds_t = load(states, at), load(states, at_t), load(d_states, at), load(d_states, at_t)
    log_w, a, k, r, b = (
        load(log_w_ptr, keys), load(a_ptr, keys), load(k_ptr, keys), load(r_ptr, keys), load(b_ptr, keys)
    )  # fmt: skip
    enter = factor(factors, i, batch, h, ENTER, B, H, K, KT)
    scale_r, scale_a, bk = decays(log_w, weights, identity, C, HALF)
    a_in = operand(a, scale_a * enter, identity, HALF)
    a, k, r, b = (
        operand(a, scale_a, identity, HALF), operand(k, bk, identity, HALF), operand(r, scale_r, identity, HALF),
        operand(b, bk, identity, HALF),
    )  # fmt: skip
    a_t, r_t, k_t = tl.trans(a), tl.trans(r), tl.trans(k)
    ak, known = scores(a, k_t, strict, HALF), only(dot(a_in, s_t, HALF), head, RESET)
    br, du = scores(b, r_t, seen, HALF), only(dot(b, ds_t, HALF), tail, RESET)
    ka, kr = scores(k, a_t, seen_before, HALF), scores(k, r_t, seen, HALF)
    dv = only(dot(k, ds_t, HALF), tail, RESET)
    known, du, dv = known + dot(ak, v, HALF), du + dot(br, d, HALF), dv + dot(kr, d, HALF)
    u, dz = pinned(known + dot(rest, known, HALF), HALF), pinned(du + dot(rest_t, du, HALF), HALF)
    u_t, dz_t = tl.trans(u), tl.trans(dz)
    dv += dot(ka, dz, HALF)
    d_rb, d_rk = scores(d, u_t, causal, HALF), scores(d, v_t, causal, HALF)
    dr = only(dot(d, s, HALF) * enter, head, RESET)
    d_ab, d_ak = scores(dz, u_t, strict, HALF), scores(dz, v_t, strict, HALF)
    da = only(dot(dz, s, HALF) * enter, head, RESET)
    d_ba, d_br = scores(u, dz_t, seen_before, HALF), scores(u, d_t, seen, HALF)
    db = only(dot(u, ds, HALF), tail, RESET)
    d_ka, d_kr = scores(v, dz_t, seen_before, HALF), scores(v, d_t, seen, HALF)
    dk = only(dot(v, ds, HALF), tail, RESET)
    crossing = product(b, db) + product(k, dk)
    dr, da = dr + dot(d_rb, b, HALF) + dot(d_rk, k, HALF), da + dot(d_ab, b, HALF) + dot(d_ak, k, HALF)
    db, dk = db + dot(d_ba, a, HALF) + dot(d_br, r, HALF), dk + dot(d_ka, a, HALF) + dot(d_kr, r, HALF)
    through_a = product(a, da)
    terms = product(r, dr) - product(b, db) - product(k, dk) + through_a
    kept = row_sums(tl.full((C, VT), 1.0, tl.float32), s.to(tl.float32) * ds.to(tl.float32), HALF) * enter
    if RESET:
        kept = tl.where(last == 0, kept, 0.0)
    total = row_sums(tl.full((C, C), 1.0, tl.float32), crossing, HALF) + kept
    dlog_w = row_sums(onward, terms, HALF) - through_a + total
    store(dv_ptr, values, dv)
    store(dr_ptr, keys, dr * scale_r)
    store(da_ptr, keys, da * scale_a)
    store(db_ptr, keys, db / scale_r)
    store(dk_ptr, keys, dk / scale_r)
    store(dlog_w_ptr, keys, dlog_w)
