"""Checkpoints from one format to another."""

import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from experiments.build import checkpoint_path
from experiments.commands.work import checkpoint_folder
from rwkv7_jax.checkpoint import (
    CheckpointError,
    load,
    params_to_flat,
    pth,
    quantised_file,
    rwkv_cpp,
    safetensors,
    small_states,
    weights_hash,
)
from rwkv7_jax.checkpoint.lazy import Tensor
from rwkv7_jax.checkpoint.names import flat_to_params
from rwkv7_jax.checkpoint.quantised_file import LINEAR
from rwkv7_jax.checkpoint.states import TIME_STATE, read_state_tensors
from rwkv7_jax.dtypes import BITS

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAID = ("method", "task", "layout", "base_model_hash")
"""Of a state file's metadata."""
Tensors = dict[str, np.ndarray]


def inspect(name: str) -> int:
    """Prints what is in a checkpoint, or in a state file.

    Args:
      name: of an embedded model, or a path.

    Raises:
      ValueError, OSError: whatever is wrong with the file, in one line.
    """
    path = checkpoint_path(name, "rwkv7 inspect")
    try:
        text = str(load(path).report)
    except CheckpointError:
        state = _state_report(path)
        if state is None:
            raise
        text = state
    print(text)
    return 0


def _state_report(path: pathlib.Path) -> str | None:
    """What is in a state file; None if it is none."""
    try:
        tensors, metadata = read_state_tensors(path)
        tensors = small_states.unpack(tensors)
    except (ValueError, OSError):
        return None
    states = [array for name, array in tensors.items() if TIME_STATE.fullmatch(name)]
    if not states:
        return None
    shape = " x ".join(map(str, states[0].shape))
    said = [f"{name:<13} {metadata[name]}" for name in SAID if name in metadata]
    lines = [
        f"file          {path}",
        "format        a state, not a model: for --state, or load_state in Python",
        f"layers        {len(states)} of {shape}, {states[0].dtype}; {len(tensors)} tensors",
        *said,
        f"more          rwkv7 state info {path}" + ("" if metadata else " --layout LAYOUT"),
    ]
    return "\n".join(lines)


def convert(source: str, target: str, dtype: str | None = None, quantise: str | None = None) -> int:
    """Reads any format and writes the one that the suffix of `target` names, quantised if asked, or a folder.

    Raises:
      CheckpointError: an unknown suffix, or whatever is wrong with the source, in one line.
    """
    if checkpoint_folder.is_folder(target):
        return _to_folder(source, target, dtype, quantise)
    writer = WRITERS.get(pathlib.Path(target).suffix)
    if writer is None:
        suffixes = ", ".join(WRITERS)
        raise CheckpointError(f"{target}: the suffix must be one of {suffixes}; a slash at the end makes a folder")
    if quantise and writer is not _write_safetensors:
        raise CheckpointError(f"{target}: --quantize writes .safetensors alone; choose that suffix")
    checkpoint = load(checkpoint_path(source, "rwkv7 convert"), lazy=True, mixed=dtype and DTYPES[dtype])
    print(checkpoint.report)
    found = params_to_flat(checkpoint.params)
    if quantise:
        kept = {name: array if LINEAR.fullmatch(name) else _cast(name, array, dtype) for name, array in found.items()}
        quantised_file.write(target, kept, BITS[quantise], checkpoint.report.weights_hash)
        print(f"wrote         {target}")
        return 0
    flat = {name: np.asarray(array) for name, array in found.items()}
    if dtype == "float16" and writer is _write_rwkv_cpp:
        rwkv_cpp.write(target, flat, "FP16")  # which casts matrices alone
    else:
        writer(target, {name: _cast(name, array, dtype) for name, array in flat.items()})
    print(f"wrote         {target}")
    return 0


def _to_folder(source: str, target: str, dtype: str | None, quantise: str | None) -> int:
    if quantise:
        raise CheckpointError(f"{target}: --quantize writes .safetensors alone; choose that suffix")
    path = checkpoint_path(source, "rwkv7 convert")
    checkpoint = load(path, lazy=True, mixed=dtype and DTYPES[dtype])
    print(checkpoint.report)
    flat = {name: _cast(name, array, dtype) for name, array in params_to_flat(checkpoint.params).items()}
    checkpoint_folder.write(target, path, flat, checkpoint.report, weights_hash(flat_to_params(flat)))
    print(f"wrote         {target}")
    return 0


def _write_safetensors(path: str, flat: Tensors) -> None:
    safetensors.write(path, flat, {"format": "pt", "weights_hash": weights_hash(flat_to_params(flat))})


def _write_rwkv_cpp(path: str, flat: Tensors) -> None:
    half = flat["head.weight"].dtype == np.float16
    rwkv_cpp.write(path, flat, "FP16" if half else "FP32")


def _cast(name: str, tensor: Tensor, dtype: str | None) -> np.ndarray:
    array = np.asarray(tensor)
    if dtype is None:
        return array
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
