"""Weights of decoding on a CPU: matrices [out, in] whose rows are read once, in order, for few rows of activations."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from pallas_kernels import cpu
from rwkv7_jax import quantisation
from rwkv7_jax.products import product as float_product
from rwkv7_jax.quantisation import QuantisedWeight

FEW_ROWS = 8
"""Up to so many rows of activations these products are faster than XLA's, with numbers of any kind."""
BFLOAT16 = (8, 7)
"""Bits of exponent and mantissa."""


class StreamedWeight(NamedTuple):
    """A matrix [O, K] of floats, or a quantised one, that lies for `product`."""

    matrix: Array | QuantisedWeight
    wanted: Int[Array, "2"] | None = None
    """The first row of few that is multiplied, and the first after it that is not; the outputs of others mean nothing.
    None: all are."""


def available() -> bool:
    """Returns whether weights are read so: on a single CPU, where `llvmlite` is installed."""
    return jax.default_backend() == "cpu" and jax.sharding.get_mesh().empty and cpu.available()


def fits(shape: tuple[int, ...], kind: cpu.Kind, groups: int = 1) -> bool:
    """Returns whether a matrix [O, K] of these numbers can be read so."""
    return len(shape) == 2 and cpu.fits(kind, shape[-1], groups)


def product(x: Float[Array, "*B K"], weight: StreamedWeight, dtype: DTypeLike) -> Float[Array, "*B O"]:
    """Computes x W^T in the dtype of x, added up in float32; its gradients are those of XLA's product.

    Args:
      x: activations; few rows are multiplied as float32, rounded to `dtype` before.
      weight: a matrix [O, K].
      dtype: what the factors are rounded to.
    """
    rows = math.prod(x.shape[:-1])
    if 0 < rows <= FEW_ROWS:
        return _few(x, weight.matrix, weight.wanted, jnp.dtype(dtype).name)
    return _many(x, weight.matrix, dtype)


def kind(weight: StreamedWeight) -> cpu.Kind:
    """Returns what the numbers of a weight are."""
    matrix = weight.matrix
    if isinstance(matrix, QuantisedWeight):
        return "int8" if matrix.bits == 8 else "int4"
    return "bfloat16" if matrix.dtype == jnp.bfloat16 else "float32"


def plain(tree: PyTree) -> PyTree:
    """Returns a tree with the matrices of streamed weights."""
    return jax.tree.map(
        lambda leaf: leaf.matrix if isinstance(leaf, StreamedWeight) else leaf, tree, is_leaf=_is_streamed
    )


def for_rows(tree: PyTree, wanted: Bool[Array, "R"]) -> PyTree:
    """Returns a tree whose streamed weights multiply those of few rows that lie between the first and last wanted; one
    row, and many, are multiplied in any case."""
    if not 1 < wanted.size <= FEW_ROWS:
        return tree
    end = wanted.size - jnp.argmax(wanted[::-1]).astype(jnp.int32)
    rows = jnp.where(wanted.any(), jnp.stack([jnp.argmax(wanted).astype(jnp.int32), end]), jnp.zeros(2, jnp.int32))
    return jax.tree.map(
        lambda leaf: leaf._replace(wanted=rows) if _is_streamed(leaf) else leaf, tree, is_leaf=_is_streamed
    )


def _is_streamed(leaf: PyTree) -> bool:
    return isinstance(leaf, StreamedWeight)


def prepare(tree: PyTree) -> None:
    """Makes the kernels known that programs need for the weights, or shapes, in a tree."""
    for leaf in jax.tree.leaves(tree, is_leaf=_is_streamed):
        if isinstance(leaf, StreamedWeight):
            groups = leaf.matrix.scales.shape[-1] if isinstance(leaf.matrix, QuantisedWeight) else 1
            cpu.prepare(kind(leaf), groups)


def _many(x: Array, matrix: Array | QuantisedWeight, dtype: DTypeLike) -> Array:
    if isinstance(matrix, QuantisedWeight):
        return quantisation.product(x, matrix, dtype)
    if matrix.dtype != dtype:
        matrix = _widened(matrix, x, dtype)
    return float_product("...d,od->...o", x, matrix, dtype)


def _widened(matrix: Array, x: Array, dtype: DTypeLike) -> Array:
    """Returns a matrix in another dtype, made where x is known.

    XLA makes what depends on weights alone first: the matrices of all layers, which then lie in new memory at once. It
    does not see that no number equals the next one.
    """
    if x.size == 0:
        return matrix.astype(dtype)
    number = jax.lax.bitcast_convert_type(x.reshape(-1)[0].astype(jnp.float32), jnp.uint32)
    return jnp.where(number == number + jnp.uint32(1), jnp.zeros((), dtype), matrix.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _few(x: Array, matrix: Array | QuantisedWeight, wanted: Array | None, dtype: str) -> Array:
    def streamed(x: Array, matrix: Array | QuantisedWeight) -> Array:
        numbers, scales = matrix if isinstance(matrix, QuantisedWeight) else (matrix, None)
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        if dtype == "bfloat16":
            rows = jax.lax.reduce_precision(rows, *BFLOAT16)
        given = (jnp.asarray(numbers), None if scales is None else jnp.asarray(scales), wanted)
        return cpu.few_rows(rows, *given).astype(x.dtype).reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x, matrix, cpu=streamed, default=functools.partial(_many, dtype=dtype))


def _few_forward(x, matrix, wanted, dtype):
    return _few(x, matrix, wanted, dtype), (x, matrix)


def _few_backward(dtype, residuals, cotangent):
    x, matrix = residuals
    if isinstance(matrix, QuantisedWeight):
        _, back = jax.vjp(lambda x: _many(x, matrix, dtype), x)
        return (*back(cotangent), None, None)
    _, back = jax.vjp(lambda x, matrix: _many(x, matrix, dtype), x, matrix)
    return (*back(cotangent), None)


_few.defvjp(_few_forward, _few_backward)
