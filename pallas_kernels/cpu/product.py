"""The product of few rows of activations with a matrix, as an operation in JAX programs."""

import functools
import platform
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

Kind = Literal["float32", "bfloat16", "int8", "int4"]
"""Numbers of a matrix. Of "int4" a byte holds two, of each group the first half in the low bits, as integer + 8."""

MACHINES = {"x86_64", "amd64", "arm64", "aarch64"}
VECTOR = 16
"""Numbers that are read at a time: rows and groups are multiples of it."""


@functools.cache
def available() -> bool:
    """Returns whether llvmlite is installed and can be loaded, on a machine that it knows."""
    try:
        import pallas_kernels.cpu.machine_code  # noqa: F401
    except (ImportError, OSError):
        return False
    return platform.machine().lower() in MACHINES and sys.byteorder == "little"


def fits(kind: Kind, inputs: int, groups: int = 1) -> bool:
    """Returns whether there is a kernel for rows of so many numbers in so many groups.

    Args:
      kind: numbers of the matrix.
      inputs: numbers of a row.
      groups: scales of a row.
    """
    return inputs % (groups * VECTOR * (2 if kind == "int4" else 1)) == 0


def few_rows(
    x: Float[Array, "R K"],
    weight: Num[Array, "O _"],
    scales: Float[Array, "O G"] | None = None,
    wanted: Int[Array, "2"] | None = None,
) -> Array:
    """Computes x W^T, added up in float32. A program with it is for a CPU; it has no gradient.

    The matrix is read once for four rows on a machine with AVX-512, elsewhere for two. Up to about eight rows that is
    faster than XLA's products. A row has the same bits alone and beside others.

    Args:
      x: activations, float32 [R, K].
      weight: float32 or bfloat16 [O, K], int8 [O, K], or uint8 [O, K / 2], which are 4-bit numbers.
      scales: float32 [O, G] of int8 and 4-bit numbers, one for K / G of them.
      wanted: int32, the first row that is computed and the first after it that is not; None: all are.

    Returns:
      float32 [R, O]; rows that are not computed are zero.

    Raises:
      ValueError: rows that no kernel fits, other dtypes, or scales that are missing or too many.
      ModuleNotFoundError: llvmlite is not installed.

    Example:
      >>> import jax, numpy as np
      >>> x, weight = np.ones((1, 16), np.float32), np.full((3, 16), 0.5, np.float32)
      >>> jax.jit(few_rows)(x, weight).tolist()
      [[8.0, 8.0, 8.0]]
    """
    kind = _kind(weight.dtype)
    groups = 1 if scales is None else scales.shape[-1]
    inputs, stored = x.shape[-1], weight.shape[-1] * (2 if kind == "int4" else 1)
    if x.dtype != np.float32 or stored != inputs or (scales is None) != (kind in ("float32", "bfloat16")):
        raise ValueError(f"few_rows: {_words(x)} with {_words(weight)} and scales {_words(scales)} do not go together")
    if not fits(kind, inputs, groups):
        raise ValueError(
            f"few_rows: rows of {inputs} {kind} numbers in {groups} groups are no whole vectors of {VECTOR}"
        )
    target = prepare(kind, groups)
    result = jax.ShapeDtypeStruct((len(x), len(weight)), jnp.float32)
    given = jnp.zeros((1, 1), jnp.float32) if scales is None else scales
    rows = jnp.array([0, len(x)], jnp.int32) if wanted is None else wanted
    return jax.ffi.ffi_call(target, result, vmap_method="sequential")(x, weight, given, rows)


def prepare(kind: Kind, groups: int = 1) -> str:
    """Makes the kernel and its name known to XLA, as a program that was compiled before needs it.

    Args:
      kind: numbers of the matrix.
      groups: scales of a row.

    Returns:
      The name.

    Raises:
      ModuleNotFoundError: llvmlite is not installed.
    """
    from pallas_kernels.cpu.machine_code import register

    return register(kind, groups > 1 or kind == "int4")


def _kind(dtype: np.dtype) -> Kind:
    kinds: dict[str, Kind] = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "uint8": "int4"}
    if str(dtype) not in kinds:
        raise ValueError(f"few_rows: there is no kernel for matrices of {dtype}; they are {', '.join(kinds)}")
    return kinds[str(dtype)]


def _words(array: Array | None) -> str:
    return "none" if array is None else f"{array.dtype}{list(array.shape)}"
