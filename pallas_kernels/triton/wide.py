"""The programs of `pallas_kernels.gpu.wide`, for log_w down to -20, in the Triton language.

Conventions and helpers as in `pallas_kernels.triton.parallel`. Scores and the inverse, whose diagonal of ones is left
out, are [n, B, H, C, C]; states and their gradients [n, B, H, V, K]. `prepare` and `gradients` are one program for each
(head, chunk, sequence), `forward` and `state_backward` one for each (head, block of the value axis, sequence).
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import triton
import triton.language as tl

from pallas_kernels.triton.kernels import dot, make_masks, part_of, rounded, segments, within
from pallas_kernels.triton.parallel import each_chunk, load, only, rest_of_inverse, row_sums, store, tile


@triton.jit
def pairs(level, C: tl.constexpr):
    """The pairs of a row that reads and a column that is read which part at this level, bool [C, C]."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)


@triton.jit
def between(level, C: tl.constexpr):
    """The tokens (columns) that decay what lies between a row and the boundary of its halves, [C, C] of ones."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    second = (row >> level) & 1 == 1
    return tl.where(
        (row >> level == col >> level) & ((second & (col <= row)) | ((row < col) & (second == 0))), 1.0, 0.0
    )


@triton.jit
def before(level, C: tl.constexpr):
    """As `between` for a, which reads before its own token decays the state; of second halves alone."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return tl.where((row >> level == col >> level) & (col < row), 1.0, 0.0)


@triton.jit
def triangle(UPTO: tl.constexpr, C: tl.constexpr):
    """[C, C] of ones: the tokens (columns) up to a row, or after it."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    if UPTO:
        return tl.where(col <= row, 1.0, 0.0)
    else:
        return tl.where(col > row, 1.0, 0.0)


@triton.jit
def spread(weights, x, HALF: tl.constexpr):
    """As `row_sums`, of what was computed: a float32 tile changes hands at once, its parts would one by one."""
    if HALF:
        return row_sums(weights, x, HALF)
    else:
        return dot(weights, x, HALF)


@triton.jit
def reader_factors(log_w, weights, HALF: tl.constexpr):
    """Factors of r and of a, which reads before its own token decays the state, float32 [C, K]."""
    here = row_sums(weights, log_w, HALF)
    return tl.exp(here), tl.exp(here - log_w.to(tl.float32))


@triton.jit
def scaled(pointer, where, factor, HALF: tl.constexpr):
    """The tile times a factor, as products take it."""
    return rounded(load(pointer, where).to(tl.float32) * factor, HALF)


@triton.jit
def square(i, b, h, B, H, C: tl.constexpr):
    """(first, offsets, mask) of the scores of chunk i."""
    return each_chunk(i, b, h, B, H, C, C, 0, C, C)


@triton.jit
def own(scores, C: tl.constexpr):
    """The diagonal, [C, 1]."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return tl.sum(tl.where(row == col, scores, 0.0), 1)[:, None]


@triton.jit
def all_scores(r_ptr, log_w_ptr, a_ptr, x_ptr, keys, C: tl.constexpr, LEVELS: tl.constexpr, HALF: tl.constexpr):
    """What a and r of every token (row) read of the b or k (x) of another (column), float32 [C, C]."""
    diagonal = tl.arange(0, C)[:, None] == tl.arange(0, C)[None, :]
    own = tl.sum(load(r_ptr, keys).to(tl.float32) * load(x_ptr, keys).to(tl.float32), 1)
    of_a, of_r = tl.zeros((C, C), tl.float32), tl.where(diagonal, own[:, None], 0.0)
    for level in range(0, LEVELS):
        grown, factor_a = reader_factors(load(log_w_ptr, keys), between(level, C), HALF)
        here = pairs(level, C)
        a, stored = scaled(a_ptr, keys, factor_a, HALF), scaled(x_ptr, keys, grown, HALF)
        of_a += within(dot(a, tl.trans(stored), HALF), here)
        tl.debug_barrier()
        if not HALF:  # again, which is cheaper than the registers to keep it
            grown, _ = reader_factors(load(log_w_ptr, keys), between(level, C), HALF)
            stored = scaled(x_ptr, keys, grown, HALF)
        of_r += within(dot(scaled(r_ptr, keys, grown, HALF), tl.trans(stored), HALF), here)
    return of_a, of_r


@triton.jit
def prepare(
    r_ptr, log_w_ptr, k_ptr, a_ptr, b_ptr, reset, inverse, rb_ptr, ak_ptr, rk_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
    WITH_K: tl.constexpr,
):  # fmt: skip
    """The inverse and the scores of a chunk; without WITH_K neither reads k nor writes A_ak and A_rk."""
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, at = tile(i, batch, h, 0, T, H, K, C, KT), square(i, batch, h, B, H, C)
    segment, _ = segments(reset, i, batch, T, C, RESET)
    strict, causal = make_masks(segment, C, RESET)
    ab, rb = all_scores(r_ptr, log_w_ptr, a_ptr, b_ptr, keys, C, LEVELS, HALF)
    store(rb_ptr, at, within(rb, causal))
    store(inverse, at, rest_of_inverse(within(ab, strict), C, HALF))
    if WITH_K:
        tl.debug_barrier()
        ak, rk = all_scores(r_ptr, log_w_ptr, a_ptr, k_ptr, keys, C, LEVELS, HALF)
        store(ak_ptr, at, within(ak, strict))
        store(rk_ptr, at, within(rk, causal))


@triton.jit
def forward(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, inverse, rb_ptr, ak_ptr, rk_ptr, s0, y_ptr, s_last, states,
    u_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """y and the last state; with SAVE also the state before each chunk, and u."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    first = each_chunk(0, batch, h, B, H, V, K, j, VT, KT)
    s = load(s0, first)
    for i in range(tl.cdiv(T, C)):
        keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, j, T, H, V, C, VT)
        at = square(i, batch, h, B, H, C)
        if SAVE:
            store(states, each_chunk(i, batch, h, B, H, V, K, j, VT, KT), s)
        segment, last = segments(reset, i, batch, T, C, RESET)
        head, tail = segment[:, None] == 0, segment[:, None] == last
        log_w = load(log_w_ptr, keys)
        of_r, of_a = reader_factors(log_w, triangle(True, C), HALF)
        state, v = tl.trans(rounded(s, HALF)), load(v_ptr, values)
        known = only(dot(scaled(a_ptr, keys, of_a, HALF), state, HALF), head, RESET) + dot(load(ak_ptr, at), v, HALF)
        u = rounded(known + dot(load(inverse, at), known, HALF), HALF)
        if SAVE:
            store(u_ptr, values, u)
        y = only(dot(scaled(r_ptr, keys, of_r, HALF), state, HALF), head, RESET) + dot(load(rk_ptr, at), v, HALF)
        store(y_ptr, values, y + dot(load(rb_ptr, at), u, HALF))
        leave = only(tl.exp(row_sums(triangle(False, C), log_w, HALF)), tail, RESET)
        whole = tl.exp(tl.sum(log_w.to(tl.float32), 0))[None, :]
        if RESET:
            whole = tl.where(last == 0, whole, 0.0)
        s = s * whole + dot(tl.trans(u), scaled(b_ptr, keys, leave, HALF), HALF)
        s += dot(tl.trans(v), scaled(k_ptr, keys, leave, HALF), HALF)
    store(s_last, first, s)


@triton.jit
def state_backward(
    r_ptr, log_w_ptr, a_ptr, b_ptr, reset, inverse, rb_ptr, dy_ptr, ds_last, ds0, d_states, dz_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """The gradient of the first state; with SAVE also that of the state after each chunk, and dz."""
    h, j, batch = tl.program_id(0), tl.program_id(1) * VT, tl.program_id(2).to(tl.int64)
    first = each_chunk(0, batch, h, B, H, V, K, j, VT, KT)
    ds = load(ds_last, first)
    for step in range(tl.cdiv(T, C)):
        i = tl.cdiv(T, C) - 1 - step
        keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, j, T, H, V, C, VT)
        at = square(i, batch, h, B, H, C)
        if SAVE:
            store(d_states, each_chunk(i, batch, h, B, H, V, K, j, VT, KT), ds)
        segment, last = segments(reset, i, batch, T, C, RESET)
        head, tail = segment[:, None] == 0, segment[:, None] == last
        log_w, dy = load(log_w_ptr, keys), load(dy_ptr, values)
        leave = only(tl.exp(row_sums(triangle(False, C), log_w, HALF)), tail, RESET)
        du = dot(tl.trans(load(rb_ptr, at)), dy, HALF) + dot(scaled(b_ptr, keys, leave, HALF), tl.trans(ds), HALF)
        dz = rounded(du + dot(tl.trans(load(inverse, at)), du, HALF), HALF)
        if SAVE:
            store(dz_ptr, values, dz)
        of_r, of_a = reader_factors(log_w, triangle(True, C), HALF)
        r, a = scaled(r_ptr, keys, only(of_r, head, RESET), HALF), scaled(a_ptr, keys, only(of_a, head, RESET), HALF)
        whole = tl.exp(tl.sum(log_w.to(tl.float32), 0))[None, :]
        if RESET:
            whole = tl.where(last == 0, whole, 0.0)
        ds = ds * whole + dot(tl.trans(dy), r, HALF) + dot(tl.trans(dz), a, HALF)
    store(ds0, first, ds)


@triton.jit
def reader_gradient(
    x_ptr, out_ptr, keys, to_b, to_k, through_state, own_terms, log_w_ptr, b_ptr, k_ptr, A: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of r, or with A that of a; returns what it gives to that of log_w, [C, K].

    through_state: the gradient of the reader scaled to the start of the chunk; own_terms: what its own token adds.
    """
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    of_r, of_a = reader_factors(load(log_w_ptr, keys), triangle(True, C), HALF)
    if A:
        total = through_state * of_a
        later = tl.where(row < col, 1.0, 0.0)
    else:
        total = through_state * of_r
        later = tl.where(row <= col, 1.0, 0.0)
    dlog_w = spread(later, load(x_ptr, keys).to(tl.float32) * total, HALF)
    total += own_terms
    for level in range(0, LEVELS):
        tl.debug_barrier()
        grown, of_a = reader_factors(load(log_w_ptr, keys), between(level, C), HALF)
        here = pairs(level, C)
        g = dot(within(to_b, here), scaled(b_ptr, keys, grown, HALF), HALF)
        g += dot(within(to_k, here), scaled(k_ptr, keys, grown, HALF), HALF)
        if A:
            g *= of_a
        else:
            g *= grown
        total += g
        if A:
            dlog_w += spread(tl.trans(before(level, C)), load(x_ptr, keys).to(tl.float32) * g, HALF)
        else:
            dlog_w += spread(tl.trans(between(level, C)), load(x_ptr, keys).to(tl.float32) * g, HALF)
    store(out_ptr, keys, total)
    return dlog_w


@triton.jit
def writer_gradient(
    x_ptr, out_ptr, keys, to_r, to_a, through_state, own_terms, log_w_ptr, r_ptr, a_ptr, C: tl.constexpr,
    LEVELS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of b or k; returns what it gives to that of log_w, [C, K]; see `reader_gradient`."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    total = through_state * tl.exp(row_sums(triangle(False, C), load(log_w_ptr, keys), HALF))
    earlier = tl.where(row > col, 1.0, 0.0)
    dlog_w = spread(earlier, load(x_ptr, keys).to(tl.float32) * total, HALF)
    total += own_terms
    for level in range(0, LEVELS):
        tl.debug_barrier()
        grown, of_a = reader_factors(load(log_w_ptr, keys), between(level, C), HALF)
        here = pairs(level, C)
        g = dot(tl.trans(within(to_r, here)), scaled(r_ptr, keys, grown, HALF), HALF)
        g += dot(tl.trans(within(to_a, here)), scaled(a_ptr, keys, of_a, HALF), HALF)
        g *= grown
        total += g
        dlog_w += spread(tl.trans(between(level, C)), load(x_ptr, keys).to(tl.float32) * g, HALF)
    store(out_ptr, keys, total)
    return dlog_w


@triton.jit
def score_gradients(
    x_ptr, u_ptr, v_ptr, i, b, h, T: tl.constexpr, H: tl.constexpr, V: tl.constexpr, VT: tl.constexpr, C: tl.constexpr
):
    """The gradients x u' and x v' of the scores with b and with k, in float32 products; see `part_of`."""
    PART: tl.constexpr = part_of(VT, False)
    of_b, of_k = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    for start in range(0, V, PART):
        part = tile(i, b, h, start, T, H, V, C, PART)
        x = load(x_ptr, part)
        of_b += dot(x, tl.trans(load(u_ptr, part)), False)
        of_k += dot(x, tl.trans(load(v_ptr, part)), False)
    return of_b, of_k


@triton.jit
def from_state(
    x_ptr, states, i, b, h, B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """x S, float32 [C, K], for the rows of a chunk and a state at its end; see `part_of`."""
    PART: tl.constexpr = part_of(VT, HALF)
    total = tl.zeros((C, KT), tl.float32)
    for start in range(0, V, PART):
        x = load(x_ptr, tile(i, b, h, start, T, H, V, C, PART))
        total += dot(x, load(states, each_chunk(i, b, h, B, H, V, K, start, PART, KT)), HALF)
    return total


@triton.jit
def gradients(
    r_ptr, log_w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, reset, ak_ptr, rk_ptr, states, d_states, u_ptr, dz_ptr, dy_ptr,
    dr_ptr, dlog_w_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr,
    B: tl.constexpr, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr,
    VT: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, HALF: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """The gradients of (r, log_w, k, v, a, b) of a chunk from what stands at its ends, and u, dz and dy in between."""
    h, i, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys, values = tile(i, batch, h, 0, T, H, K, C, KT), tile(i, batch, h, 0, T, H, V, C, VT)
    at, ends = square(i, batch, h, B, H, C), each_chunk(i, batch, h, B, H, V, K, 0, VT, KT)
    segment, last = segments(reset, i, batch, T, C, RESET)
    head, tail = segment[:, None] == 0, segment[:, None] == last
    strict, causal = make_masks(segment, C, RESET)
    dy, dz = load(dy_ptr, values), load(dz_ptr, values)
    leave = only(tl.exp(row_sums(triangle(False, C), load(log_w_ptr, keys), HALF)), tail, RESET)
    dv = dot(scaled(k_ptr, keys, leave, HALF), tl.trans(load(d_states, ends)), HALF)
    dv += dot(tl.trans(load(rk_ptr, at)), dy, HALF) + dot(tl.trans(load(ak_ptr, at)), dz, HALF)
    store(dv_ptr, values, dv)
    tl.debug_barrier()
    if HALF:
        u, v = load(u_ptr, values), load(v_ptr, values)
        rb, rk = dot(dy, tl.trans(u), HALF), dot(dy, tl.trans(v), HALF)
        ab, ak = dot(dz, tl.trans(u), HALF), dot(dz, tl.trans(v), HALF)
    else:
        rb, rk = score_gradients(dy_ptr, u_ptr, v_ptr, i, batch, h, T, H, V, VT, C)
        ab, ak = score_gradients(dz_ptr, u_ptr, v_ptr, i, batch, h, T, H, V, VT, C)
    rb, rk = within(rb, causal), within(rk, causal)
    own_b, own_k = own(rb, C), own(rk, C)
    rb, rk = rounded(rb, HALF), rounded(rk, HALF)
    ab, ak = rounded(within(ab, strict), HALF), rounded(within(ak, strict), HALF)
    tl.debug_barrier()
    if HALF:
        through = dot(dy, load(states, ends), HALF)
    else:
        through = from_state(dy_ptr, states, i, batch, h, B, T, H, K, V, KT, VT, C, HALF)
    through = only(through, head, RESET)
    terms = own_b * load(b_ptr, keys).to(tl.float32) + own_k * load(k_ptr, keys).to(tl.float32)
    dlog_w = reader_gradient(
        r_ptr, dr_ptr, keys, rb, rk, through, terms, log_w_ptr, b_ptr, k_ptr, False, C, LEVELS, HALF
    )
    tl.debug_barrier()
    through = only(from_state(dz_ptr, states, i, batch, h, B, T, H, K, V, KT, VT, C, HALF), head, RESET)
    dlog_w += reader_gradient(a_ptr, da_ptr, keys, ab, ak, through, 0.0, log_w_ptr, b_ptr, k_ptr, True, C, LEVELS, HALF)
    tl.debug_barrier()
    terms = own_b * load(r_ptr, keys).to(tl.float32)
    through = only(from_state(u_ptr, d_states, i, batch, h, B, T, H, K, V, KT, VT, C, HALF), tail, RESET)
    dlog_w += writer_gradient(b_ptr, db_ptr, keys, rb, ab, through, terms, log_w_ptr, r_ptr, a_ptr, C, LEVELS, HALF)
    tl.debug_barrier()
    terms = own_k * load(r_ptr, keys).to(tl.float32)
    through = only(from_state(v_ptr, d_states, i, batch, h, B, T, H, K, V, KT, VT, C, HALF), tail, RESET)
    dlog_w += writer_gradient(k_ptr, dk_ptr, keys, rk, ak, through, terms, log_w_ptr, r_ptr, a_ptr, C, LEVELS, HALF)
    tl.debug_barrier()
    total = tl.sum(load(states, ends).to(tl.float32) * load(d_states, ends).to(tl.float32), 0)[None, :]
    total *= tl.exp(tl.sum(load(log_w_ptr, keys).to(tl.float32), 0))[None, :]
    if RESET:
        total = tl.where(last == 0, total, 0.0)
    store(dlog_w_ptr, keys, dlog_w + total)
