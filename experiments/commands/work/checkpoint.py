"""Checkpoints from one format to another."""

import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from rwkv7_jax.checkpoint import CheckpointError, load, params_to_flat, pth, rwkv_cpp, safetensors, weights_hash
from rwkv7_jax.checkpoint.names import flat_to_params

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
Tensors = dict[str, np.ndarray]


def inspect(path: str) -> int:
    """Prints what is in a checkpoint."""
    print(load(path).report)
    return 0


def convert(source: str, target: str, dtype: str | None = None) -> int:
    """Reads any format and writes the one that the suffix of `target` names.

    Raises:
      CheckpointError: an unknown suffix, or whatever is wrong with the source, in one line.
    """
    writer = WRITERS.get(pathlib.Path(target).suffix)
    if writer is None:
        raise CheckpointError(f"{target}: the suffix must be one of {', '.join(WRITERS)}")
    checkpoint = load(source, mixed=dtype and DTYPES[dtype])
    print(checkpoint.report)
    flat = params_to_flat(checkpoint.params)
    if dtype == "float16" and writer is _write_rwkv_cpp:
        rwkv_cpp.write(target, flat, "FP16")  # which casts matrices alone
    else:
        writer(target, {name: _cast(name, array, dtype) for name, array in flat.items()} if dtype else flat)
    print(f"wrote         {target}")
    return 0


def _write_safetensors(path: str, flat: Tensors) -> None:
    safetensors.write(path, flat, {"format": "pt", "weights_hash": weights_hash(flat_to_params(flat))})


def _write_rwkv_cpp(path: str, flat: Tensors) -> None:
    half = flat["head.weight"].dtype == np.float16
    rwkv_cpp.write(path, flat, "FP16" if half else "FP32")


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[dtype])
    if not np.isfinite(out.astype(np.float32)).all() and np.isfinite(array.astype(np.float32)).all():
        raise CheckpointError(f"{name} has values that {dtype} cannot hold; choose float32 or bfloat16")
    return out


WRITERS: dict[str, Callable[[str, Tensors], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": pth.write,
    ".bin": _write_rwkv_cpp,
}
