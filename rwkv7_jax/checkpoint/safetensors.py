"""Safetensors: a JSON header and raw bytes, memory-mapped. One file, or a Hugging Face folder with shards.

Source: https://github.com/huggingface/safetensors#format
"""

import json
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

import ml_dtypes
import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, atomic, guard, mapped, raw_bytes, view
from rwkv7_jax.checkpoint.layouts import is_folded, to_released
from rwkv7_jax.checkpoint.lazy import Tensor

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 100_000_000
"""Bytes of header that the reference implementation accepts."""
ALIGNMENT = 64
INDEX = "model.safetensors.index.json"


class Entry(TypedDict):
    """A tensor in the header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


class Described(NamedTuple):
    """A checkpoint by released names, the key layout it came in and the header's metadata."""

    tensors: dict[str, np.ndarray]
    layout: str
    metadata: dict[str, str]


def read(path: PathLike) -> dict[str, np.ndarray]:
    """Reads tensors by released name from a file or a Hugging Face folder, as read-only views of memory-mapped bytes.

    Raises:
      CheckpointError: one line.
      FileNotFoundError: there is no such file.
    """
    return read_described(path).tensors


def read_described(path: PathLike) -> Described:
    """Reads as `read` does; returns the layout's name and the metadata too."""
    with guard(path, "a safetensors checkpoint"):
        if not pathlib.Path(path).is_dir():
            flat, metadata = read_tensors(path)
            return Described(*to_released(flat), metadata)
        config = _folder_config(pathlib.Path(path))
        files = [read_tensors(file) for file in _folder_files(pathlib.Path(path))]
        flat = {name: array for tensors, _ in files for name, array in tensors.items()}
        if len(flat) != sum(len(tensors) for tensors, _ in files):
            raise CheckpointError("two shards hold a tensor of the same name; download the folder again")
        tensors, layout = to_released(flat)
        if config.get("tie_word_embeddings") is True and "head.weight" not in tensors and "emb.weight" in tensors:
            tensors["head.weight"] = tensors["emb.weight"]
        _check_fused(config.get("embedding_layer_norm_fused"), is_folded(tensors))
        return Described(tensors, layout, files[0][1] if len(files) == 1 else {})


def read_tensors(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns (tensors by the file's own names, metadata).

    Raises:
      CheckpointError: one line.
    """
    with guard(path, "a safetensors file"):
        data = mapped(path)
        if len(data) < 8:
            raise CheckpointError("too short for a safetensors file; download it again")
        size = int(data[:8].view("<u8")[0])
        if size > min(MAX_HEADER, len(data) - 8):
            raise CheckpointError(
                "the header is longer than the file: not safetensors, or truncated; download it again"
            )
        header = json.loads(data[8 : 8 + size].tobytes(), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise CheckpointError("the header is not a JSON object; download the file again")
        metadata = header.pop("__metadata__", {})
        body = data[8 + size :]
        tensors = {name: _tensor(body, name, entry) for name, entry in header.items()}
        return tensors, {str(key): str(value) for key, value in metadata.items()}


def write(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file atomically, largest dtypes first, so that every tensor is aligned.

    Raises:
      CheckpointError: a dtype that the format does not have.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    order, at = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0
    for name in order:
        array = arrays[name]
        if array.dtype not in names:
            raise CheckpointError(f"{path}: {name} is {array.dtype}, which safetensors cannot hold; cast it")
        span = [at, at := at + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(raw_bytes(arrays[name]))


def _tensor(body: np.ndarray, name: str, entry: Entry) -> np.ndarray:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{name} has dtype {entry['dtype']}, which is not supported; use float32, bf16 or fp16")
    dtype = DTYPES[entry["dtype"]]
    if not all(type(n) is int and n >= 0 for n in (*shape, *offsets)) or len(shape) > 8:
        raise CheckpointError(f"{name} has shape {shape} and offsets {offsets}: not sound; download the file again")
    start, end = offsets
    if end - start != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise CheckpointError(
            f"{name}: {end - start} bytes do not hold shape {shape} of {dtype}; download the file again"
        )
    if end > len(body):
        raise CheckpointError(f"{name} lies beyond the end of the file, which is truncated; download it again")
    return view(body, start, dtype, tuple(shape))


def _folder_files(folder: pathlib.Path) -> Iterable[pathlib.Path]:
    """Returns the shards of a Hugging Face folder: by its index, else its only safetensors file."""
    if (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        for name in sorted(names):
            if pathlib.PurePath(name).name != name or "\\" in name:
                raise CheckpointError(f"{INDEX} names the shard {name}, which points outside of the folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"shard {name} of {INDEX} is not in the folder; download it too")
        return [folder / name for name in sorted(names)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise CheckpointError(
        f"a folder with {len(found)} .safetensors files and no {INDEX}; pass a checkpoint file or a complete folder"
    )


def _folder_config(folder: pathlib.Path) -> dict[str, object]:
    """Reads and checks config.json, if there is one: only what changes the computation; dimensions come from shapes."""
    if not (folder / "config.json").is_file():
        return {}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type", "rwkv7") not in ("rwkv7", "rwkv"):
        raise CheckpointError(f"config.json says model_type {config['model_type']}; an RWKV-7 checkpoint is needed")
    if abs(config.get("norm_eps", 1e-5) - 1e-5) > 1e-9:
        raise CheckpointError(f"config.json says norm_eps {config['norm_eps']}; RWKV-7 as released has 1e-05")
    if config.get("hidden_act", "sqrelu") not in ("sqrelu", "relu2"):
        raise CheckpointError(f"config.json says hidden_act {config['hidden_act']}; RWKV-7 as released has sqrelu")
    return config


def _check_fused(fused: object, folded: bool) -> None:
    if fused is True and not folded:
        raise CheckpointError("config.json says embedding_layer_norm_fused, but blocks.0.ln0 is in the file")
    if fused is False and folded:
        raise CheckpointError("missing tensors blocks.0.ln0, not fused by config.json; export the file again")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Makes a JSON object whose names must differ."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise CheckpointError("the header names a tensor twice; download the file again")
    return out
