"""One chunk of WKV-7 as tiles of a GPU program: the mathematics of `chunked.math` in the operations Triton has.

A tile is [C, K], [C, V] or [C, C] with power-of-two sides of at least 16 and is never sliced; rows are picked by masks
and sums. Matrix products round their operands to `Numerics.operand` and add up in float32. Whatever enters a product
is kept rounded, so that the gradient of log_w is made of the very numbers that the other products used: what a pair of
tokens adds at one and takes away at the other then cancels exactly.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.pallas import triton as pallas_triton

Precision: TypeAlias = lax.Precision | lax.DotAlgorithmPreset | None


class Numerics(NamedTuple):
    """How products are computed.

    operand: bfloat16, or float32 for results as exact as float32: the six largest products of three bfloat16 parts
    each, which take fewer registers than three tf32 products.
    interpret: the kernel runs on a CPU, which rounds to bfloat16 and tf32 as a GPU would and then multiplies exactly.
    """

    operand: np.dtype
    interpret: bool

    def dot(self, x: Array, y: Array, contract: tuple[int, int]) -> Array:
        """Sum over axis contract[0] of x and contract[1] of y: operands rounded, float32 out."""
        x, y = x.astype(self.operand), y.astype(self.operand)
        if self.interpret:
            return _dot(x.astype(jnp.float32), y.astype(jnp.float32), contract, lax.Precision.HIGHEST)
        exact = self.operand == jnp.float32
        return _dot(x, y, contract, lax.DotAlgorithmPreset.BF16_BF16_F32_X6 if exact else None)

    def barrier(self) -> None:
        """Keep the compiler from loading the operands of later products while those of earlier ones are still held."""
        if not self.interpret:
            pallas_triton.debug_barrier()

    def pinned(self, x: Array) -> Array:
        """x rounded for products, and kept so: the compiler would keep a float32 and round it before each use."""
        x = x.astype(self.operand)
        if self.interpret or self.operand == jnp.float32:
            return x
        (x,) = pallas_triton.elementwise_inline_asm(
            "mov.b32 $0, $1;",
            args=[x],
            constraints="=r,r",
            pack=2,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return x

    def mm(self, x: Array, y: Array) -> Array:
        """x y."""
        return self.dot(x, y, (1, 0))

    def mm_t(self, x: Array, y: Array) -> Array:
        """x y^T."""
        return self.dot(x, y, (1, 1))

    def t_mm(self, x: Array, y: Array) -> Array:
        """x^T y."""
        return self.dot(x, y, (0, 0))

    def score_dot(self, x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
        """`fine_dot` of gradients of scores and operands that are rounded already."""
        return self.fine_dot(x, y.astype(jnp.float32), contract)

    def fine_dot(self, x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
        """`dot` of float32 tiles, for the inverse and what it is applied to: tf32, where `operand` is bfloat16."""
        if self.operand == jnp.float32:
            return self.dot(x, y, contract)
        if self.interpret:
            x, y = (lax.reduce_precision(z, exponent_bits=8, mantissa_bits=10) for z in (x, y))
            return _dot(x, y, contract, lax.Precision.HIGHEST)
        return _dot(x, y, contract, lax.DotAlgorithmPreset.TF32_TF32_F32)


def _dot(x: Array, y: Array, contract: tuple[int, int], precision: Precision) -> Array:
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


class Segments(NamedTuple):
    """Where resets divide a chunk: segment number [C] of each token, and of the last one (a scalar)."""

    number: Array
    last: Array


class Scale(NamedTuple):
    """Decay factors relative to the middle of the chunk, float32 [C, K], and from its start to its end, [1, K].

    enter: from the start to the middle, for tokens that see the incoming state; leave: from the middle to the end, for
    tokens that reach the outgoing one. Both are [1, K] without resets. `c` is the cumulative sum of log_w.
    """

    r: Array
    a: Array
    bk: Array
    enter: Array
    leave: Array
    whole: Array


class Storer(NamedTuple):
    """b and k, which store in the state: [C, K] scaled to the middle of the chunk, rounded for products."""

    b: Array
    k: Array


class Loader(NamedTuple):
    """r, which loads from the state after its token stored, or a, which loads from it before.

    mid, entering: [C, K] scaled to the middle and to the start of the chunk, rounded for products.
    """

    mid: Array
    entering: Array


def where(mask: Array | None, x: Array) -> Array:
    """x where mask, else 0; all of x without a mask."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def make_segments(reset: Array | None) -> Segments | None:
    """Returns the segments between resets, int32 [C] of 0 and 1; None without resets."""
    return None if reset is None else Segments(lax.cumsum(reset, axis=0), jnp.sum(reset))


def make_scale(log_w: Array, segments: Segments | None) -> Scale:
    """Centred on the middle row, a factor of 16 tokens stays within e^5 for the decays of RWKV-7, of 32 within e^10."""
    log_w = log_w.astype(jnp.float32)
    row = lax.broadcasted_iota(jnp.int32, log_w.shape, 0)
    c = lax.cumsum(log_w, axis=0)
    middle = jnp.sum(where(row <= (log_w.shape[0] - 1) // 2, log_w), axis=0, keepdims=True)
    end = jnp.sum(log_w, axis=0, keepdims=True)
    head = tail = keep = None
    if segments is not None:
        head, tail = (segments.number == 0)[:, None], (segments.number == segments.last)[:, None]
        keep = segments.last == 0
    return Scale(
        r=jnp.exp(c - middle),
        a=jnp.exp(c - log_w - middle),
        bk=jnp.exp(middle - c),
        enter=where(head, jnp.exp(middle)),
        leave=where(tail, jnp.exp(end - middle)),
        whole=where(keep, jnp.exp(end)),
    )


def make_masks(size: int, segments: Segments | None) -> tuple[Array, Array]:
    """(s < t, s <= t) on scores [C, C], within one segment."""
    row, col = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    if segments is None:
        return col < row, col <= row
    same = segments.number[:, None] == segments.number[None, :]
    return (col < row) & same, (col <= row) & same


def unit_lower_inverse(numerics: Numerics, lower: Array) -> Array:
    """(I - lower)^-1 for a strictly lower triangular tile, by doubling blocks; see `chunked.math`."""
    size = lower.shape[0]
    row, col = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    inverse = (row == col).astype(jnp.float32)
    for level in range(size.bit_length() - 1):
        below = (row >> (level + 1) == col >> (level + 1)) & (row >> level > col >> level)
        step = where(below, lower)
        if level:
            step = numerics.fine_dot(inverse, numerics.fine_dot(step, inverse))
        inverse = inverse + step
    return inverse


def scaled(x: Array, *factors: Array) -> Array:
    """x in float32 times all factors."""
    out = x.astype(jnp.float32)
    for factor in factors:
        out = out * factor
    return out


def at_middle(n: Numerics, x: Array, scale: Scale) -> Array:
    """Scales b or k to the middle of the chunk, rounded for products."""
    return scaled(x, scale.bk).astype(n.operand)


def make_storer(n: Numerics, b: Array, k: Array, scale: Scale) -> Storer:
    """Scales b and k to the middle of the chunk, rounded for products."""
    return Storer(at_middle(n, b, scale), at_middle(n, k, scale))


def make_loader(n: Numerics, x: Array, factor: Array, scale: Scale) -> Loader:
    """Scales r or a. factor: `scale.r` or `scale.a`."""
    mid = scaled(x, factor)
    return Loader(mid.astype(n.operand), (mid * scale.enter).astype(n.operand))


def scores(n: Numerics, loader: Loader, stored: Array, mask: Array) -> Array:
    """Returns what token t (row) loads of what token s (column) stored by b or by k, [C, C] float32.

    mask: which token sees which.
    """
    return where(mask, n.mm_t(loader.mid, stored))


def advance(n: Numerics, scale: Scale, b: Array, k: Array, u: Array, v: Array, s: Array) -> Array:
    """The state after the chunk from the one before, float32 [V, K]; u, [C, V], is row by row S_{t-1} a_t."""
    b_out, k_out = (scaled(z, scale.bk, scale.leave) for z in (b, k))
    return s * scale.whole + n.t_mm(u, b_out) + n.t_mm(v, k_out)
