"""Real checkpoints in and out: one file a format, each <-> the same parameter tree.

    checkpoint = load("RWKV-x070-World-0.1B.pth")       # or safetensors, a Hugging Face folder, rwkv.cpp .bin
    print(checkpoint.report)
    save("weights.safetensors", checkpoint.params)

`python -m rwkv7_jax.checkpoint inspect PATH` prints the report, `convert IN OUT` changes the format.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from rwkv7_jax.checkpoint import pth, rwkv_cpp, safetensors
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, guard
from rwkv7_jax.checkpoint.import_report import ParityReport
from rwkv7_jax.checkpoint.layouts import to_released
from rwkv7_jax.checkpoint.names import (
    UNUSED,
    expected_shapes,
    flat_to_params,
    infer_config,
    params_to_flat,
    weights_hash,
)
from rwkv7_jax.checkpoint.states import (
    LAYOUTS,
    LayoutGuess,
    StateFile,
    detect_layout,
    export_state,
    from_rwkv_list,
    load_state,
    read_state_tensors,
    save_state,
    to_rwkv_list,
)
from rwkv7_jax.config import RWKV7Config

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "LayoutGuess",
    "ParityReport",
    "StateFile",
    "detect_format",
    "detect_layout",
    "export_state",
    "flat_to_params",
    "from_rwkv_list",
    "infer_config",
    "load",
    "load_state",
    "params_to_flat",
    "read_state_tensors",
    "save",
    "save_state",
    "to_rwkv_list",
    "weights_hash",
]

Format = Literal["pth", "safetensors", "rwkv_cpp"]


class Checkpoint(NamedTuple):
    """An imported model: dimensions, weights in the file's dtype (numpy, emb and head memory-mapped), a report."""

    config: RWKV7Config
    params: dict[str, Any]
    report: ParityReport


def load(path: PathLike, *, format: Format | None = None, lazy: bool = False) -> Checkpoint:
    """Read a checkpoint of any supported format; by its content, whatever its name, unless `format` says which.

    lazy: keep nothing of the weights in memory; stacked ones are `names.Stacked` (see `rwkv7_jax.sharding.place`).

    Raises: CheckpointError, one line with the path, for whatever is not a complete, sound RWKV-7 checkpoint;
    FileNotFoundError.
    """
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder; check the path")
    with guard(path, "an RWKV-7 checkpoint"):
        flat, description, metadata = _read(path, format or detect_format(path))
        config, params = infer_config(flat), flat_to_params(flat, lazy=lazy)
        digest = weights_hash(params)
        if metadata.get("weights_hash", digest) != digest:
            raise CheckpointError("the weights do not match the hash stored with them: damaged; copy the file again")
        return Checkpoint(config, params, _report(path, description, config, flat, digest))


def save(path: PathLike, params: Mapping[str, Any]) -> None:
    """Write a parameter tree as safetensors with the released `.pth` names and shapes, and a hash that `load` checks.

    Replaces `path` at once or not at all.
    """
    metadata = {"format": "pt", "layout": "released", "weights_hash": weights_hash(params)}
    safetensors.write(path, params_to_flat(params), metadata)


def detect_format(path: PathLike) -> Format:
    """The format of a file (or Hugging Face folder) by its first bytes. Raises: CheckpointError, one line."""
    path = pathlib.Path(path)
    if path.is_dir():
        return "safetensors"
    with guard(path, "a checkpoint"), path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download or export it again")
    if head.startswith((pth.MAGIC, pth.PICKLE)):
        return "pth"
    if head[:4] == rwkv_cpp.MAGIC.to_bytes(4, "little"):
        return "rwkv_cpp"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= safetensors.MAX_HEADER:
        return "safetensors"
    kind = "a text file" if all(byte in b"\t\n\r" or byte >= 0x20 for byte in head) else "an unknown kind of file"
    raise CheckpointError(
        f"{path}: {kind}, not a checkpoint; pass a BlinkDL .pth, safetensors, a Hugging Face folder or an rwkv.cpp .bin"
    )


def _read(path: PathLike, format: Format) -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """(tensors by released name, description of the format, metadata)."""
    if format == "pth":
        tensors, layout = to_released(pth.read_tensors(path))
        return tensors, f"torch .pth ({layout} names)", {}
    if format == "rwkv_cpp":
        tensors = rwkv_cpp.read(path)
        half = any(array.dtype == np.float16 for array in tensors.values())
        return tensors, f"rwkv.cpp .bin ({'FP16' if half else 'FP32'})", {}
    if format == "safetensors":
        found = safetensors.read_described(path)
        return found.tensors, f"safetensors ({found.layout} names)", found.metadata
    raise CheckpointError(f"unknown format {format}; one of pth, safetensors, rwkv_cpp")


def _report(path, description: str, config: RWKV7Config, flat: Mapping[str, np.ndarray], digest: str) -> ParityReport:
    used = [flat[name] for name in expected_shapes(config)]
    note = f"group norm epsilon is 64e-5 here; {description} models with heads of {config.head_size} may scale it"
    foreign = config.head_size != 64 and ("fla" in description or "transformers" in description)
    return ParityReport(
        path=str(path),
        format=description,
        config=config,
        parameter_count=sum(array.size for array in used),
        tensor_count=len(used),
        unused=tuple(name for name in UNUSED if name in flat),
        missing=(),
        dtypes=tuple(sorted({str(array.dtype) for array in used})),
        weights_hash=digest,
        notes=(note,) if foreign else (),
    )
