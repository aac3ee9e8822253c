"""The GPU programs of WKV-7 divided over time: what does not depend on the state for all chunks at once, then states.

In a chunk of C = 32 tokens the state and its gradient change by

    S+ = S o whole + (F + (S o enter) W' b) o leave       W = (I - A_ab)^-1 a    F = U_0' b + V' k
    D- = D o whole + (E + (D o leave) b' W) o enter       R = r + A_rb W         E = dY' R

with r, k, a, b scaled to the middle of the chunk and U_0 what U would be without a state. `prepare_forward` and
`prepare_backward` compute W' b and F, or b' W and E, one program for each chunk and head; `scan` follows the states,
one product a chunk; `outputs` and `gradients`, one program for each chunk and head again, compute the rest from the
states on both sides. Scores and (I - A_ab)^-1 are kept rounded; its diagonal of ones is not stored and stays exact.

Programs of several warps exchange tiles by way of shared memory, behind barriers. So they load all tiles first,
products that do not wait for each other stand together, and so do the tiles that they need transposed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.chunk import Numerics, make_masks, make_segments, where
from pallas_kernels.gpu.tiles import GridIndex, Plan, Ref, make_tile_buffer

FROM_MIDDLE, IDENTITY, ONWARD, ENDS = range(4)
"""Matrices of `make_weights`. Their products with a tile are sums of rows: from the middle to each row, the row itself,
the row and all after it, and in the rows ENTER, LEAVE and WHOLE those of each half and of all."""
SMALLEST = 16
"""Rows of the smallest tile."""
ENTER, LEAVE, WHOLE = range(3)
FACTORS = 3
"""Rows of the factors of a chunk, [3, K]: from its start to its middle, on to its end, and all the way."""
EMPTY = OpInputs(*(None,) * 7)  # type: ignore[arg-type]
"""No inputs, for programs that follow states alone."""


class Chunk(NamedTuple):
    """What all programs of a chunk begin with.

    strict, causal: which token (row) sees which (column); head, tail: [C, 1], the tokens that see the state before the
    chunk, and those that reach the one after it; keep: whether the one reaches the other; same: [C, C], which are
    between the same resets. The last four are None for all.
    """

    n: Numerics
    tile: GridIndex
    strict: Array
    causal: Array
    head: Array | None
    tail: Array | None
    keep: Array | None
    same: Array | None

    def seen(self) -> tuple[Array, Array]:
        """`strict` and `causal` for transposed scores: which token (row) is seen by which (column)."""
        row, col = indices(self.tile.plan.chunk)
        strict, causal = col > row, col >= row
        return (strict, causal) if self.same is None else (strict & self.same, causal & self.same)

    def scores(self, rows: Array, columns: Array, mask: Array) -> Array:
        """rows columns' under the mask, rounded for products."""
        return self.masked(self.n.mm_t(rows, columns), mask)

    def masked(self, scores: Array, mask: Array) -> Array:
        """Scores under the mask, rounded for products."""
        return self.n.pinned(where(mask, scores))

    def scaled(self, weights: Ref, *names: str) -> "Scaled":
        """Loads r, k, a or b and scales them to the middle of the chunk. weights: of `make_weights`.

        Each tile passes through a product with the identity, which is exact and leaves it in the registers that the
        sums of log_w are in: all tiles go through shared memory behind one barrier, instead of two barriers for each.
        """
        n = self.n
        loaded, log_w = [self.tile.load(name) for name in names], self.tile.load("log_w")
        identity = load_weights(weights, IDENTITY)
        c, each = row_sums(n, load_weights(weights, FROM_MIDDLE), log_w), row_sums(n, identity, log_w)
        moved = [n.mm(identity, x) for x in loaded]
        factors = {"r": jnp.exp(c), "a": jnp.exp(c - each), "b": jnp.exp(-c)}
        factors["k"] = factors["b"]
        operands = {name: n.pinned(x * factors[name]) for name, x in zip(names, moved, strict=True)}
        return Scaled(operands, factors)


class Scaled(NamedTuple):
    """Vectors of a chunk relative to its middle.

    operands: r, k, a, b, rounded for products; factors: float32 [C, K], what they were multiplied by.
    """

    operands: dict[str, Array]
    factors: dict[str, Array]

    def get(self, names: str) -> list[Array]:
        """The operands of these names of one letter each."""
        return [self.operands[name] for name in names]


def make_weights(chunk: int, dtype: np.dtype) -> Array:
    """Returns the whole numbers [4, C, C] that rows are added up with: FROM_MIDDLE, IDENTITY, ONWARD, ENDS.

    Programs load them: what they compute instead enters a product behind two barriers for each matrix.
    """
    row, col = np.indices((chunk, chunk))
    middle = (col <= middle_row(chunk)).astype(int)
    ends = np.where(row == ENTER, middle, np.where(row == LEAVE, 1 - middle, row == WHOLE))
    return jnp.asarray(np.stack([(col <= row) - middle, col == row, col >= row, ends]), dtype)


def load_weights(weights: Ref, which: int, rows: int | None = None) -> Array:
    """Reads one of `make_weights`, its first rows if their number is given."""
    return pallas_triton.load(weights.at[jnp.int32(which), pl.ds(0, rows or weights.shape[1])])


def row_sums(n: Numerics, weights: Array, x: Array) -> Array:
    """weights x, float32, where weights [., C] are whole numbers: sums of rows as exact as of float32.

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
    segments = make_segments(tile.reset())
    head = tail = keep = same = None
    if segments is not None:
        same = segments.number[:, None] == segments.number[None, :]
        head, tail = (segments.number == 0)[:, None], (segments.number == segments.last)[:, None]
        keep = segments.last == 0
    return Chunk(plan.numerics, tile, *make_masks(plan.chunk, segments), head, tail, keep, same)


def indices(size: int) -> tuple[Array, Array]:
    """(row, column) of each entry of scores, int32 [C, C]."""
    return lax.broadcasted_iota(jnp.int32, (size, size), 0), lax.broadcasted_iota(jnp.int32, (size, size), 1)


def middle_row(size: int) -> int:
    """The row of a chunk that decays are relative to."""
    return (size - 1) // 2


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


def prepare_forward(x: OpInputs, weights: Ref, *outputs: Ref, plan: Plan) -> None:
    """`outputs` takes (I - A_ab)^-1 - I [C, C], W' b [K, K], F [V, K] and the factors [3, K] of a chunk."""
    at = make_chunk(own_tile(x, plan))
    n, scaled, v = at.n, at.scaled(weights, "a", "b", "k"), at.tile.load("v")
    a, b, k = scaled.get("abk")
    ab, ak = where(at.strict, n.mm_t(a, b)), at.scores(a, k, at.strict)
    rest = n.pinned(rest_of_inverse(n, ab))
    head, out = where(at.head, a), where(at.tail, b)
    known = n.mm(ak, v)
    w, u = head.astype(jnp.float32) + n.mm(rest, head), known + n.mm(rest, known)
    store_prepared(at, weights, outputs, rest, n.t_mm(w, out), n.t_mm(u, out) + n.t_mm(v, where(at.tail, k)))


def prepare_backward(x: OpInputs, weights: Ref, dy: Ref, *outputs: Ref, plan: Plan) -> None:
    """`outputs` takes (I - A_ab)^-1 - I [C, C], b' W [K, K], E [V, K] and the factors [3, K] of a chunk.

    Reads neither k nor v nor a state.
    """
    at = make_chunk(own_tile(x, plan))
    n, scaled, d = at.n, at.scaled(weights, "a", "b", "r"), at.tile.get(dy, key=False)
    a, b, r = scaled.get("abr")
    ab, rb = where(at.strict, n.mm_t(a, b)), at.scores(r, b, at.causal)
    rest = n.pinned(rest_of_inverse(n, ab))
    head = where(at.head, a)
    w = n.pinned(head.astype(jnp.float32) + n.mm(rest, head))
    reads = where(at.head, r).astype(jnp.float32) + n.mm(rb, w)
    store_prepared(at, weights, outputs, rest, n.t_mm(where(at.tail, b), w), n.t_mm(d, reads))


def store_prepared(at: Chunk, weights: Ref, outputs: Sequence[Ref], rest: Array, step: Array, change: Array) -> None:
    """Writes what a chunk is prepared by to the outputs of `prepare_forward` or `prepare_backward`."""
    plan = at.tile.plan
    to_rest, to_step, to_change, factors = (ref.at[at.tile.i] for ref in outputs)
    rows = load_weights(weights, ENDS, SMALLEST)
    ends = jnp.exp(row_sums(plan.numerics, rows, at.tile.load("log_w")))
    if at.keep is not None:
        broken = (lax.broadcasted_iota(jnp.int32, ends.shape, 0) == WHOLE) & ~at.keep
        ends = jnp.where(broken, 0.0, ends)
    store(factors, ends, FACTORS, plan.key)
    store(to_rest, rest)
    store(to_step, step, plan.key, plan.key)
    store(to_change, change, plan.value, plan.key)


def scan(
    step: Ref, change: Ref, factors: Ref, first: Ref, last: Ref, *states: Ref, plan: Plan, reverse: bool, moved: bool
) -> None:
    """The state after all chunks from `first`, or with `reverse` the gradient before them; one block of values.

    `states`, if given, takes that before each chunk, or with `reverse` the gradient after it, scaled to the middle.
    moved: the change passes through a product with the identity, as what `Chunk.scaled` loads.
    """
    n, buffer = plan.numerics, make_tile_buffer(plan, block=pl.program_id(1))
    inward, outward = (LEAVE, ENTER) if reverse else (ENTER, LEAVE)
    row, col = indices(plan.value_tile)
    identity = (row == col).astype(n.operand)

    def chunk(count: Array, s: Array) -> Array:
        i = plan.chunks - 1 - count if reverse else count
        tile = buffer.at(EMPTY, i)
        scaled = (s * load_factor(factors, tile, inward)).astype(n.operand)
        if states:
            buffer.store_state(states[0], scaled, i)
        change_here = buffer.load_tile(change, i)
        added = n.mm(identity, change_here) if moved else change_here.astype(jnp.float32)
        added = added + n.mm(scaled, load(step.at[i], plan.key, plan.key))
        return s * load_factor(factors, tile, WHOLE) + added * load_factor(factors, tile, outward)

    buffer.store_state(last, lax.fori_loop(0, plan.chunks, chunk, buffer.load_state(first)))


def outputs(x: OpInputs, weights: Ref, inverse: Ref, states: Ref, y: Ref, *, plan: Plan) -> None:
    """y of a chunk from the state before it."""
    at = make_chunk(own_tile(x, plan))
    n, tile, v, s = at.n, at.tile, at.tile.load("v"), load_transposed(states, at.tile.i, plan.value, plan.key)
    a, k, b, r = at.scaled(weights, "a", "k", "b", "r").get("akbr")
    ak, rk, rb = at.scores(a, k, at.strict), at.scores(r, k, at.causal), at.scores(r, b, at.causal)
    known, out = where(at.head, n.mm(a, s)) + n.mm(ak, v), where(at.head, n.mm(r, s)) + n.mm(rk, v)
    u = known + n.mm(load(inverse.at[tile.i]), known)
    tile.put(y, out + n.mm(rb, u), key=False)


def load(ref: Ref, rows: int | None = None, columns: int | None = None) -> Array:
    """Reads a tile of which rows and columns from these on are outside, None for none: 0 there."""
    mask = inside(ref.shape, rows, columns)
    return pallas_triton.load(ref) if mask is None else pallas_triton.load(ref, mask=mask, other=0.0)


def load_transposed(ref: Ref, i: Array, rows: int | None = None, columns: int | None = None) -> Array:
    """`load` of tile i, turned on its way from memory: to turn it for a product takes two barriers."""
    shape = ref.shape[:0:-1]
    mask = inside(shape, columns, rows)
    turned = ref.at[i, lax.broadcasted_iota(jnp.int32, shape, 1), lax.broadcasted_iota(jnp.int32, shape, 0)]
    return pallas_triton.load(turned) if mask is None else pallas_triton.load(turned, mask=mask, other=0.0)


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
