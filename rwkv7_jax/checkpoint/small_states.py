"""State files as small as users share them: matrices of low rank, in few bits.

A layer's matrices S [H, V, K] stand as they are in another dtype, or as the factors u [H, V, R] and w [H, R, K] of the
nearest matrices of rank R (Eckart and Young), or as integers with a scale for each row of S, each column of u and each
row of w. Reading gives S in float32: u @ w, each multiplied by its scales.
"""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import ml_dtypes
import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError

SmallDtype = Literal["float32", "float16", "bfloat16", "int8"]
VERSION = "2"
"""Of files with such tensors."""
PART = re.compile(r"(blocks\.\d{1,6}\.att\.time_state)\.(u|w|q)(_scale)?")
LARGEST = 127
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_AXIS = {"u": 1, "w": 2, "q": 2}
"""Along which a scale holds."""


def pack(name: str, matrix: np.ndarray, rank: int | None, dtype: SmallDtype) -> dict[str, np.ndarray]:
    """Returns the tensors of one layer.

    Args:
      name: of the layer's tensor.
      matrix: [H, V, K], float32.
      rank: of the factors; None: no factors.
      dtype: of what is stored.

    Raises:
      CheckpointError: not 1 <= rank <= min(V, K), an unknown dtype, or values that the dtype cannot hold.

    Example:
      >>> found = pack("blocks.0.att.time_state", np.ones((2, 4, 4), np.float32), 1, "int8")
      >>> sorted(part.rpartition(".")[2] for part in found)
      ['u', 'u_scale', 'w', 'w_scale']
    """
    if dtype not in get_args(SmallDtype):
        raise CheckpointError(f"dtype {dtype}: one of {', '.join(get_args(SmallDtype))} is written")
    if rank is None:
        return _stored(name, "q", matrix, dtype)
    full = min(matrix.shape[1:])
    if not 1 <= rank <= full:
        raise CheckpointError(f"rank {rank} is not in 1..{full}, the ranks of a head")
    left, singular, right = np.linalg.svd(matrix.astype(np.float32), full_matrices=False)
    root = np.sqrt(singular[:, :rank])
    u, w = left[..., :rank] * root[:, None, :], root[..., None] * right[:, :rank]
    return _stored(name, "u", u, dtype) | _stored(name, "w", w, dtype)


def packed(tensors: Mapping[str, np.ndarray], rank: int | None, dtype: SmallDtype) -> dict[str, np.ndarray]:
    """Returns the tensors of a state with every layer's matrices packed; others are passed on."""
    found = {}
    for name, array in tensors.items():
        found |= pack(name, array, rank, dtype) if name.endswith(".time_state") else {name: array}
    return found


def unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors with the matrices [H, V, K] of their layers in float32; others are passed on.

    Raises:
      CheckpointError: a part is missing, or of a shape or dtype that does not fit the others.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    plain = {}
    for name, array in tensors.items():
        match = PART.fullmatch(name)
        if match is None:
            plain[name] = array
        else:
            layers.setdefault(match[1], {})[match[2] + (match[3] or "")] = array
    for name, parts in layers.items():
        if name in plain:
            raise CheckpointError(f"{name} is there whole and in parts; export the state again")
        plain[name] = _whole(name, parts)
    return plain


def _stored(name: str, part: str, array: np.ndarray, dtype: SmallDtype) -> dict[str, np.ndarray]:
    if dtype != "int8":
        with np.errstate(over="ignore"):
            cast = array.astype(_DTYPES[dtype])
        if not np.isfinite(cast.astype(np.float32)).all():
            raise CheckpointError(f"{name} has values that {dtype} cannot hold; choose another dtype")
        return {f"{name}.{part}": cast}
    scale = np.abs(array).max(_AXIS[part], keepdims=True) / LARGEST
    whole = np.rint(array / np.where(scale == 0, 1, scale)).astype(np.int8)
    return {f"{name}.{part}": whole, f"{name}.{part}_scale": scale.astype(np.float32)}


def _whole(name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """One layer's matrices."""
    factors = {part: _scaled(f"{name}.{part}", part, parts) for part in ("u", "w", "q") if part in parts}
    known = {key for part in factors for key in (part, f"{part}_scale")}
    if set(factors) not in ({"q"}, {"u", "w"}) or not set(parts) <= known:
        raise CheckpointError(f"{name} is there in the parts {', '.join(sorted(parts))}; u and w, or q, are needed")
    if "q" in factors:
        return factors["q"]
    u, w = factors["u"], factors["w"]
    if u.shape[0] != w.shape[0] or u.shape[2] != w.shape[1]:
        raise CheckpointError(f"{name}: factors of shapes {list(u.shape)} and {list(w.shape)} have no product")
    with np.errstate(over="ignore", invalid="ignore"):
        return u @ w


def _scaled(name: str, part: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    array, scale = parts[part], parts.get(f"{part}_scale")
    if array.ndim != 3 or 0 in array.shape:
        raise CheckpointError(f"{name} has shape {list(array.shape)}, expected three axes")
    if array.dtype == np.int8:
        wanted = tuple(1 if axis == _AXIS[part] else size for axis, size in enumerate(array.shape))
        if scale is None or scale.shape != wanted or scale.dtype != np.float32:
            raise CheckpointError(f"{name}: integers need a float32 scale of shape {list(wanted)}")
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32) * scale
    if scale is not None or array.dtype.kind not in "fV":
        raise CheckpointError(f"{name} is {array.dtype}, expected integers with a scale, or floating numbers")
    return array.astype(np.float32)
