"""Quantised frozen weights: int8 or 4-bit numbers with float32 scales, and their product with activations.

    W[o, k] = scales[o, k // group] * integer[o, k]

A frozen weight needs products alone, y = x W^T forward and dx = dy W backward; no gradient is taken with respect to it.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

__all__ = ["QuantisedWeight", "dequantise", "quantise", "to_numpy"]

Bits = Literal[4, 8]
GROUPS: dict[int, int] = {8: 0, 4: 32}
"""Numbers that share a scale, by bits; 0: a whole row."""
FEW_ROWS = 4
"""Up to so many rows of activations a CPU multiplies as integers."""
LONG = 1536
"""From so many activations a row on a CPU multiplies integers as W x^T faster than as x W^T."""
NARROW_ROWS = 64
"""Up to so many rows W x^T is faster than x W^T on a CPU."""
DECODED_ROWS = 256
"""Up to so many rows a CPU has products of its own. Longer texts are read as everywhere."""
TILE = 5 * 2**19
"""Numbers of a matrix that a CPU has as floats at a time: they stay in its caches."""
RUN = 32
"""Products that XLA adds up where it makes them; those of longer sums go through memory."""
DIGIT = 254.0
"""The second digit of an activation counts 1/254 of the first: both lie in -127..127."""


@runtime_checkable
class Rows(Protocol):
    """A matrix of which rows can be taken."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every axis."""
        ...

    def __getitem__(self, index: slice, /) -> np.ndarray: ...


class QuantisedWeight(NamedTuple):
    """A matrix [*L, O, K] of int8 numbers, or of 4-bit ones of which each byte holds two."""

    values: np.ndarray | Array | jax.ShapeDtypeStruct
    """int8 `[*L, O, K]`, or uint8 `[*L, O, K / 2]`: of each group the first half in the low 4 bits, as integer + 8."""
    scales: np.ndarray | Array | jax.ShapeDtypeStruct
    """float32 `[*L, O, K / group]`."""

    @property
    def bits(self) -> Bits:
        """8 or 4."""
        return 8 if self.values.dtype == np.int8 else 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix that is stood for."""
        *lead, width = self.values.shape
        return (*lead, width * (8 // self.bits))

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return sum(part.size * part.dtype.itemsize for part in self)


def quantise(weight: Rows, bits: Bits = 8, group: int | None = None) -> QuantisedWeight:
    """Quantises a matrix [O, K] row by row, symmetrically: the largest number of a group becomes 127.

    With 4 bits the scale is the one of several candidates whose group has the least squared error.

    Args:
      weight: of any floating dtype; a part of its rows at a time is taken and held in float32.
      bits: 8 or 4.
      group: numbers that share a scale; 0 a whole row, None the default of `bits` (a row; 32).

    Returns:
      The numbers and their scales, as numpy arrays.

    Raises:
      ValueError: one line, for a group that does not divide the rows, odd groups of 4-bit numbers, and weights that are
        not finite.

    Example:
      >>> import numpy as np
      >>> q = quantise(np.array([[1.0, -0.5, 0.25, 127.0]], np.float32))
      >>> q.values.tolist(), q.scales.tolist()
      ([[1, 0, 0, 127]], [[1.0]])
    """
    width = weight.shape[-1]
    size = (GROUPS[bits] if group is None else group) or width
    if width % size or (bits == 4 and size % 2):
        raise ValueError(f"groups of {size} do not divide rows of {width} numbers; choose a group that does")
    count = weight.shape[0]
    values = np.empty((count, width * bits // 8), np.int8 if bits == 8 else np.uint8)
    scales = np.empty((count, width // size), np.float32)
    step = max(1, 2**22 // width)
    for at in range(0, count, step):
        part = np.asarray(weight[at : at + step]).astype(np.float32).reshape(-1, width // size, size)
        if not np.isfinite(part).all():
            raise ValueError("NaN or infinite numbers among the weights; get the file again")
        integers, scale = _rounded(part, bits)
        values[at : at + step] = (integers if bits == 8 else _packed(integers)).reshape(len(part), -1)
        scales[at : at + step] = scale
    return QuantisedWeight(values, scales)


def quantised_shape(shape: Sequence[int], bits: Bits) -> QuantisedWeight:
    """Returns shapes and dtypes of a matrix [*L, O, K] that `quantise` makes with the default groups."""
    *lead, width = shape
    values = jax.ShapeDtypeStruct((*lead, width * bits // 8), np.int8 if bits == 8 else np.uint8)
    return QuantisedWeight(values, jax.ShapeDtypeStruct((*lead, width // (GROUPS[bits] or width)), np.float32))


def _rounded(part: np.ndarray, bits: Bits) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int8 integers, scales [rows, groups]) of numbers [rows, groups, group]."""
    top = 127 if bits == 8 else 7
    widest = np.abs(part).max(axis=-1) / np.float32(top)
    integers, scale, error = *_at_scale(part, widest, top), np.inf
    for factor in np.linspace(1.0, 0.7, 7, dtype=np.float32) if bits == 4 else ():
        tried, at_scale = _at_scale(part, widest * factor, top)
        squared = np.square(tried * at_scale[..., None] - part).sum(axis=-1)
        better = squared < error
        error, scale = np.where(better, squared, error), np.where(better, at_scale, scale)
        integers = np.where(better[..., None], tried, integers)
    return integers.astype(np.int8), scale


def _at_scale(part: np.ndarray, scale: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(part * inverse[..., None]), -top, top), scale


def _packed(integers: np.ndarray) -> np.ndarray:
    low, high = np.split((integers + 8).astype(np.uint8), 2, axis=-1)
    return low | (high << 4)


def integers(weight: QuantisedWeight) -> Int8[Array, "*L O K"]:
    """Returns the integers of a weight as int8."""
    values = jnp.asarray(weight.values)
    if weight.bits == 8:
        return values
    groups = values.reshape(*values.shape[:-1], weight.scales.shape[-1], -1)
    both = jnp.concatenate([groups & 0xF, groups >> 4], axis=-1).astype(jnp.int8) - jnp.int8(8)
    return both.reshape(weight.shape)


def to_numpy(weight: QuantisedWeight) -> np.ndarray:
    """Returns the matrix that a quantised weight on the host stands for, without JAX.

    Args:
      weight: a quantised weight [*L, O, K].

    Returns:
      The matrix [*L, O, K], float32.
    """
    values, scales = np.asarray(weight.values), np.asarray(weight.scales)
    groups = values.reshape(*scales.shape, -1)
    if weight.bits == 4:
        groups = np.concatenate([groups & 0xF, groups >> 4], axis=-1).astype(np.int8) - np.int8(8)
    return (groups.astype(np.float32) * scales[..., None]).reshape(weight.shape)


def dequantise(weight: QuantisedWeight, dtype: DTypeLike = jnp.float32) -> Float[Array, "*L O K"]:
    """Returns the matrix that a quantised weight stands for.

    Args:
      weight: a quantised weight [*L, O, K].
      dtype: of the result.

    Returns:
      The matrix [*L, O, K].
    """
    scales = jnp.asarray(weight.scales)
    groups = integers(weight).reshape(*scales.shape, -1).astype(jnp.float32) * scales[..., None]
    return groups.reshape(weight.shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "*B K"], weight: QuantisedWeight, dtype: DTypeLike) -> Float[Array, "*B O"]:
    """Computes x W^T, accumulated in float32 and returned in the dtype of x; its gradient with respect to x is dy W.

    A CPU multiplies as integers up to `FEW_ROWS` rows by int8 weights with a scale a row, and one row by others:
    activations then have 16 bits, and errors of at most 1.6e-5 of the largest. It reads the weights once, as bytes.

    Args:
      x: activations.
      weight: a matrix [O, K].
      dtype: what the factors are rounded to where they are multiplied as floats.
    """
    rows = x.reshape(-1, x.shape[-1])
    by_floats = functools.partial(_by_floats, dtype=dtype)
    if len(rows) <= DECODED_ROWS:
        y = jax.lax.platform_dependent(rows, weight, cpu=functools.partial(_on_cpu, dtype=dtype), default=by_floats)
    else:
        y = by_floats(rows, weight)
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _by_floats(x: Float[Array, "N K"], weight: QuantisedWeight, dtype: DTypeLike) -> Float[Array, "N O"]:
    x = x.astype(dtype)
    if weight.scales.shape[-1] > 1:
        return _dot(x, dequantise(weight, x.dtype))
    return _dot(x, integers(weight).astype(x.dtype)) * jnp.asarray(weight.scales)[None, :, 0]


def _dot(x: Array, matrix: Array) -> Float[Array, "N O"]:
    return jnp.einsum("nk,ok->no", x, matrix, preferred_element_type=jnp.float32)


def _on_cpu(x: Float[Array, "N K"], weight: QuantisedWeight, dtype: DTypeLike) -> Float[Array, "N O"]:
    """Chooses by shapes; which is fastest was measured."""
    groups = weight.scales.shape[-1]
    if len(x) <= FEW_ROWS and weight.bits == 8 and groups == 1:
        return _by_digits(x, weight)
    if len(x) == 1 and x.shape[-1] % (groups * RUN) == 0:
        return _by_sums(x, weight)
    return _by_tiles(x.astype(dtype), weight)


def _by_digits(x: Float[Array, "N K"], weight: QuantisedWeight) -> Float[Array, "N O"]:
    """Multiplies two 8-bit digits of every activation by int8 weights with a scale a row, which are read once."""
    unit = _peak(x) / 127
    scaled = x.astype(jnp.float32) / unit
    # On a CPU one select over both digits takes a third of the time of a concatenation that is converted.
    both = jnp.broadcast_to(scaled, (2, *scaled.shape))
    first = jnp.round(both)
    second = jax.lax.broadcasted_iota(jnp.int32, both.shape, 0) == 1
    chosen = jnp.where(second, jnp.round((both - first) * DIGIT), first)
    digits = chosen.astype(jnp.int32).astype(jnp.int8).reshape(-1, scaled.shape[-1])
    turned = scaled.shape[-1] >= LONG
    spec = "nk,ok->on" if turned else "nk,ok->no"
    counted = jnp.einsum(spec, digits, integers(weight), preferred_element_type=jnp.int32).astype(jnp.float32)
    # Turned after the conversion: XLA would make x W^T of a product that is turned itself.
    counted = counted.T if turned else counted
    product = counted[: len(x)] + counted[len(x) :] / DIGIT
    return product * unit * jnp.asarray(weight.scales)[None, :, 0]


def _by_sums(x: Float[Array, "1 K"], weight: QuantisedWeight) -> Float[Array, "1 O"]:
    """Multiplies one row, as 16-bit numbers, by the integers of each run; the sums of runs are scaled and added up."""
    unit = _peak(x) / 32767
    # By way of int16, so that the machine code may multiply and add pairs of 16-bit numbers.
    whole = jnp.round(x.astype(jnp.float32) / unit).astype(jnp.int32).astype(jnp.int16).astype(jnp.int32)
    runs = x.shape[-1] // RUN
    outputs, groups = weight.scales.shape
    terms = [
        numbers.reshape(1, runs, -1) * values.astype(jnp.int32).reshape(outputs, runs, -1)
        for numbers, values in _sides(whole, weight)
    ]
    sums = jnp.sum(sum(terms[1:], terms[0]), axis=-1, dtype=jnp.int32).astype(jnp.float32)
    scaled = sums.reshape(outputs, groups, -1) * jnp.asarray(weight.scales)[..., None]
    return (scaled.sum(axis=(1, 2)) * unit[0])[None]


def _peak(x: Float[Array, "N K"]) -> Float[Array, "N 1"]:
    """Returns the largest size of each row, above 0."""
    return jnp.maximum(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True), jnp.float32(1e-30))


def _sides(x: Array, weight: QuantisedWeight) -> list[tuple[Array, Array]]:
    """Returns parts of activations [N, k] and of integers [O, k], whose products add up to that of all.

    4-bit numbers are two parts, the low bits and the high bits: putting them in order takes longer than the product.
    """
    values = jnp.asarray(weight.values)
    if weight.bits == 8:
        return [(x, values)]
    groups = x.reshape(len(x), weight.scales.shape[-1], 2, -1)
    low, high = (groups[:, :, half].reshape(len(x), -1) for half in (0, 1))
    return [(part, bits.astype(jnp.int8) - jnp.int8(8)) for part, bits in ((low, values & 0xF), (high, values >> 4))]


def _by_tiles(x: Float[Array, "N K"], weight: QuantisedWeight) -> Float[Array, "N O"]:
    """Computes what `_by_floats` does, with a part of a large matrix as floats at a time."""
    outputs, inputs = weight.shape
    tiles = -(-outputs * inputs // TILE)
    size, narrow = -(-outputs // tiles), len(x) <= NARROW_ROWS
    if tiles == 1:
        y = _tile(x, weight, narrow)
        return y.T if narrow else y

    def step(tile: Array, y: Array) -> Array:
        # The last tile begins where it ends with the matrix: rows of it may be those of the one before, once more.
        part = QuantisedWeight(*(jax.lax.dynamic_slice_in_dim(jnp.asarray(z), tile * size, size) for z in weight))
        return jax.lax.dynamic_update_slice_in_dim(y, _tile(x, part, narrow), tile * size, 0 if narrow else 1)

    blank = jnp.zeros((outputs, len(x)) if narrow else (len(x), outputs), jnp.float32)
    y = jax.lax.fori_loop(0, tiles, step, blank)
    return y.T if narrow else y


def _tile(x: Float[Array, "N K"], weight: QuantisedWeight, narrow: bool) -> Float[Array, "_ _"]:
    """Returns W x^T if `narrow`, else x W^T."""
    scales = jnp.asarray(weight.scales)
    outputs, groups = scales.shape

    def product(part: Array, values: Array) -> Array:
        matrix = _after(x, values).astype(jnp.float32)
        if groups > 1:
            matrix = (matrix.reshape(outputs, groups, -1) * scales[..., None]).reshape(outputs, -1)
        factors = (matrix.astype(x.dtype), part)
        return jnp.einsum("ak,bk->ab", *(factors if narrow else factors[::-1]), preferred_element_type=jnp.float32)

    terms = [product(*side) for side in _sides(x, weight)]
    y = sum(terms[1:], terms[0])
    return y if groups > 1 else y * (scales if narrow else scales.T)


def _after(x: Float[Array, "N K"], values: Array) -> Array:
    """Returns `values`, but no sooner than `x`: XLA would convert the matrices of all layers first and keep them."""
    bits = jax.lax.bitcast_convert_type(x[0, 0].astype(jnp.float32), jnp.int32)
    never = (bits | 1) == 0
    return values + never.astype(values.dtype)


def _product_forward(x, weight, dtype):
    return product(x, weight, dtype), (weight, jnp.zeros((0,), x.dtype))


def _product_backward(dtype, residuals, cotangent):
    weight, like = residuals
    dy = cotangent.reshape(-1, cotangent.shape[-1])
    if weight.scales.shape[-1] > 1:
        matrix = dequantise(weight, dtype)
    else:
        matrix, dy = integers(weight).astype(dtype), dy * jnp.asarray(weight.scales)[None, :, 0].astype(dy.dtype)
    dx = jnp.einsum("no,ok->nk", dy.astype(dtype), matrix, preferred_element_type=jnp.float32)
    return dx.astype(like.dtype).reshape(*cotangent.shape[:-1], -1), None


product.defvjp(_product_forward, _product_backward)
