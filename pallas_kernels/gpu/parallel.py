"""The GPU programs of WKV-7 divided over time: what does not depend on the state for all chunks at once, then states.

In a chunk of C = 32 tokens the state and its gradient change by

    S+ = S o whole + (S o enter) (W' b) o leave + F       W = (I - A_ab)^-1 a    F = (U_0' b + V' k) o leave
    D- = D o whole + (D o leave) (b' W) o enter + E       R = r + A_rb W         E = (dY' R) o enter

with r, k, a, b scaled to the middle of the chunk and U_0 what U would be without a state. `prepare_forward` and
`prepare_backward` compute W' b and F, or b' W and E, one program for each chunk and head; `scan` follows the states,
one product a chunk; `outputs` and `gradients`, one program for each chunk and head again, compute the rest from the
states on both sides. Scores and (I - A_ab)^-1 are kept rounded; its diagonal of ones is not stored and stays exact.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import Numerics, Segments, make_masks, make_segments, where
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref, make_tile_buffer

ENTER, LEAVE, WHOLE = range(3)
"""Rows of the factors of a chunk, [3, K]: from its start to its middle, on to its end, and all the way."""
EMPTY = OpInputs(*(None,) * 7)  # type: ignore[arg-type]
"""No inputs, for programs that follow states alone."""


class Chunk(NamedTuple):
    """What all programs of a chunk begin with.

    c: cumulative sum of log_w relative to the middle, float32 [C, K]; strict, causal: which token (row) sees which
    (column); head, tail: [C, 1], the tokens that see the state before the chunk, and those that reach the one after it,
    None for all; segments: None without resets. Factors are computed where they are used, which spares registers.
    """

    n: Numerics
    tile: GridIndex
    c: Array
    strict: Array
    causal: Array
    head: Array | None
    tail: Array | None
    segments: Segments | None

    def factor(self, name: str) -> Array:
        """Computes the decay of r, k, a or b relative to the middle, float32 [C, K]."""
        if name == "a":
            return jnp.exp(self.c - self.tile.load("log_w").astype(jnp.float32))
        return jnp.exp(self.c if name == "r" else -self.c)

    def operand(self, name: str) -> Array:
        """Loads r, k, a or b, scaled to the middle and rounded for products."""
        return self.n.pinned(self.tile.load(name).astype(jnp.float32) * self.factor(name))

    def scores(self, rows: Array, columns: Array, mask: Array) -> Array:
        """rows columns' under the mask, rounded for products."""
        return self.n.pinned(where(mask, self.n.mm_t(rows, columns)))


def row_sums(n: Numerics, weights: Array, x: Array) -> Array:
    """weights x, float32, where weights [C, C] are whole numbers: sums of rows as exact as of float32.

    A float32 x is added up in two parts, of which a product rounds only the second.
    """
    weights = weights.astype(n.operand)
    if x.dtype == n.operand:
        return n.mm(weights, x)
    first = x.astype(n.operand)
    return n.mm(weights, first) + n.mm(weights, x - first.astype(jnp.float32))


def own_tile(x: OpInputs, plan: Plan) -> GridIndex:
    """Returns the chunk of the running program; the grid is (H, chunks, B)."""
    return make_tile_buffer(plan, block=0).at(x, pl.program_id(1))


def make_chunk(tile: GridIndex) -> Chunk:
    """Returns what the programs of a chunk begin with."""
    plan = tile.plan
    n = plan.numerics
    segments = make_segments(tile.reset())
    strict, causal = make_masks(plan.chunk, segments)
    log_w, (row, col) = tile.load("log_w"), indices(plan.chunk)
    up_to = (col <= row).astype(jnp.float32) - (col <= middle_row(plan)).astype(jnp.float32)
    c = row_sums(n, up_to, log_w)
    head = tail = None
    if segments is not None:
        head, tail = (segments.number == 0)[:, None], (segments.number == segments.last)[:, None]
    return Chunk(n, tile, c, strict, causal, head, tail, segments)


def indices(size: int) -> tuple[Array, Array]:
    """(row, column) of each entry of scores, int32 [C, C]."""
    return lax.broadcasted_iota(jnp.int32, (size, size), 0), lax.broadcasted_iota(jnp.int32, (size, size), 1)


def middle_row(plan: Plan) -> int:
    """The row that decays are relative to."""
    return (plan.chunk - 1) // 2


def make_factors(at: Chunk) -> tuple[Array, Array, Array]:
    """(enter, leave, whole), float32 [1, K]."""
    log_w = at.tile.load("log_w").astype(jnp.float32)
    row = lax.broadcasted_iota(jnp.int32, log_w.shape, 0)
    middle = jnp.sum(where(row <= middle_row(at.tile.plan), log_w), axis=0, keepdims=True)
    end = jnp.sum(log_w, axis=0, keepdims=True)
    keep = None if at.segments is None else at.segments.last == 0
    return jnp.exp(middle), jnp.exp(end - middle), where(keep, jnp.exp(end))


def rest_of_inverse(n: Numerics, lower: Array) -> Array:
    """(I - lower)^-1 - I for a strictly lower triangular tile, float32, by doubling blocks; see `chunked.math`."""
    row, col = indices(lower.shape[0])
    rest = where((row >> 1 == col >> 1) & (row > col), lower)
    for level in range(1, lower.shape[0].bit_length() - 1):
        below = (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)
        step = where(below, lower)
        step = step + n.mm(step, rest)
        rest = rest + step + n.mm(rest, step)
    return rest


class Prepared(NamedTuple):
    """What both directions make of a chunk."""

    at: Chunk
    enter: Array
    leave: Array
    a: Array
    b: Array
    rest: Array
    """(I - A_ab)^-1 - I."""


def prepare(x: OpInputs, inverse: Ref, factors: Ref, plan: Plan) -> Prepared:
    """Computes what both directions need, and stores the inverse and the factors."""
    at = make_chunk(own_tile(x, plan))
    enter, leave, whole = make_factors(at)
    store_factors(factors, plan, at.tile.i, (enter, leave, whole))
    a, b = at.operand("a"), at.operand("b")
    rest = rest_of_inverse(at.n, where(at.strict, at.n.mm_t(a, b)))
    store(inverse.at[at.tile.i], rest)
    return Prepared(at, enter, leave, a, b, rest)


def prepare_forward(x: OpInputs, inverse: Ref, step: Ref, change: Ref, factors: Ref, *, plan: Plan) -> None:
    """(I - A_ab)^-1 - I [C, C], W' b o leave [K, K], F [V, K] and the factors [3, K] of a chunk."""
    at, _, leave, a, b, rest = prepare(x, inverse, factors, plan)
    n, tile = at.n, at.tile
    head, out = where(at.head, a), where(at.tail, b)
    w = head.astype(jnp.float32) + n.mm(rest, head)
    store(step.at[tile.i], n.t_mm(w, out) * leave, plan.key, plan.key)
    k, v = at.operand("k"), tile.load("v")
    known = n.mm(at.scores(a, k, at.strict), v)
    u = known + n.mm(rest, known)
    total = n.t_mm(u, out) + n.t_mm(v, where(at.tail, k))
    store(change.at[tile.i], total * leave, plan.value, plan.key)


def prepare_backward(x: OpInputs, dy: Ref, inverse: Ref, step: Ref, change: Ref, factors: Ref, *, plan: Plan) -> None:
    """(I - A_ab)^-1 - I [C, C], b' W o enter [K, K], E [V, K] and the factors [3, K] of a chunk; no k, v or state."""
    at, enter, _, a, b, rest = prepare(x, inverse, factors, plan)
    n, tile = at.n, at.tile
    head = where(at.head, a)
    w = (head.astype(jnp.float32) + n.mm(rest, head)).astype(n.operand)
    store(step.at[tile.i], n.t_mm(where(at.tail, b), w) * enter, plan.key, plan.key)
    r = at.operand("r")
    reads = where(at.head, r).astype(jnp.float32) + n.mm(at.scores(r, b, at.causal), w)
    store(change.at[tile.i], n.t_mm(tile.get(dy, key=False), reads) * enter, plan.value, plan.key)


def scan(step: Ref, change: Ref, factors: Ref, first: Ref, last: Ref, *states: Ref, plan: Plan, reverse: bool) -> None:
    """The state after all chunks from `first`, or with `reverse` the gradient before them; one block of values.

    `states`, if given, takes that before each chunk, or with `reverse` the gradient after it.
    """
    n, buffer = plan.numerics, make_tile_buffer(plan, block=pl.program_id(1))
    inward = LEAVE if reverse else ENTER

    def chunk(count: Array, s: Array) -> Array:
        i = plan.chunks - 1 - count if reverse else count
        if states:
            buffer.store_state(states[0], s, i)
        tile = buffer.at(EMPTY, i)
        product = n.mm(s * load_factor(factors, tile, inward), load(step.at[i], plan.key, plan.key))
        return s * load_factor(factors, tile, WHOLE) + buffer.load_state(change, i) + product

    buffer.store_state(last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(first)))


def outputs(x: OpInputs, inverse: Ref, factors: Ref, states: Ref, y: Ref, *, plan: Plan) -> None:
    """y of a chunk from the state before it."""
    at = make_chunk(own_tile(x, plan))
    n, tile = at.n, at.tile
    s = entering_state(at, states, factors).astype(n.operand)
    a, b, k, v = at.operand("a"), at.operand("b"), at.operand("k"), tile.load("v")
    u = solved(at, inverse, s, a, at.scores(a, k, at.strict), v).astype(n.operand)
    r = at.operand("r")
    known = where(at.head, n.mm_t(r, s)) + n.mm(at.scores(r, k, at.causal), v)
    tile.put(y, known + n.mm(at.scores(r, b, at.causal), u), key=False)


def entering_state(at: Chunk, states: Ref, factors: Ref) -> Array:
    """The state before the chunk, scaled to its middle, float32."""
    return at.tile.buffer.load_state(states, at.tile.i) * load_factor(factors, at.tile, ENTER)


def solved(at: Chunk, inverse: Ref, s: Array, a: Array, ak: Array, v: Array) -> Array:
    """U, of which row t is S_{t-1} a_t, from the state scaled to the middle, float32; ak: scores of a with k."""
    known = where(at.head, at.n.mm_t(a, s)) + at.n.mm(ak, v)
    return known + at.n.mm(load(inverse.at[at.tile.i]), known)


def load(ref: Ref, rows: int | None = None, columns: int | None = None) -> Array:
    """Reads a tile of which rows and columns from these on are outside, None for none: 0 there."""
    mask = inside(ref.shape, rows, columns)
    return pallas_triton.load(ref) if mask is None else pallas_triton.load(ref, mask=mask, other=0.0)


def store(ref: Ref, x: Array, rows: int | None = None, columns: int | None = None) -> None:
    """Writes a tile where it is inside, in the dtype of the ref."""
    pallas_triton.store(ref, x.astype(ref.dtype), mask=inside(x.shape, rows, columns))


def inside(shape: tuple[int, ...], rows: int | None, columns: int | None) -> Array | None:
    """Bool [rows, columns] of the shape; None if all of it is."""
    mask = None
    for axis, limit in enumerate((rows, columns)):
        if limit is not None and limit < shape[axis]:
            part = lax.broadcasted_iota(jnp.int32, shape, axis) < limit
            mask = part if mask is None else mask & part
    return mask


def load_factor(factors: Ref, tile: GridIndex, row: int) -> Array:
    """Reads a factor of a chunk, [1, K], 0 outside."""
    return load(factors.at[tile.i, pl.ds(row, 1)], None, tile.plan.key)


def store_factors(factors: Ref, plan: Plan, i: Array, rows: tuple[Array, ...]) -> None:
    """Writes the factors of chunk i."""
    for row, x in enumerate(rows):
        store(factors.at[i, pl.ds(row, 1)], x, None, plan.key)
