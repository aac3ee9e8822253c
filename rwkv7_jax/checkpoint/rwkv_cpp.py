"""rwkv.cpp's `.bin` (ggml, "ggmf" version 101): float32 and float16; the types of `ggml_blocks` are read only.

    header   six uint32: magic, version, vocabulary, width, layers, data type
    tensor   uint32 dims, key length, type; dims (fastest first); key; data

Against `.pth`: the six mixes are one tensor `x_rwkvag`, LoRA matrices are transposed, vectors have unit axes, float16
files keep vectors in float32.
"""

import re
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, atomic, guard, mapped, one_line, raw_bytes, view
from rwkv7_jax.checkpoint.ggml_blocks import BLOCK, BYTES, BlockMatrix
from rwkv7_jax.checkpoint.lazy import Tensor
from rwkv7_jax.checkpoint.names import VECTOR, infer_config

MAGIC = 0x67676D66
VERSIONS = (100, 101)
TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}
QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0", 10: "Q8_1", 11: "Q2_K",
    12: "Q3_K", 13: "Q4_K", 14: "Q5_K", 15: "Q6_K", 16: "Q8_K",
}  # fmt: skip
HEADER = struct.Struct("<6I")
TENSOR = struct.Struct("<3I")
LORA = re.compile(r"blocks\.\d+\.att\.[wavg][12]")


def read(path: PathLike) -> dict[str, Tensor]:
    """Reads tensors by released name: views of the memory-mapped file, copies where the file does not align them.

    Raises:
      CheckpointError: one line, for quantised types and damaged files.
    """
    with guard(path, "an rwkv.cpp file"):
        flat: dict[str, Tensor] = {}
        for name, array in _tensors(mapped(path)):
            for released, value in _released(name, array):
                if released in flat:
                    raise CheckpointError(f"tensor {released} is there twice; convert the checkpoint again")
                flat[released] = value
        return flat


def write(path: PathLike, tensors: Mapping[str, Tensor], data_type: str = "FP32") -> None:
    """Writes released tensors atomically as rwkv.cpp does; `data_type` is FP32 or FP16 (matrices only).

    Raises:
      CheckpointError: a matrix does not fit float16.
    """
    config, half = infer_config(tensors), data_type == "FP16"
    with atomic(path) as file:
        file.write(HEADER.pack(MAGIC, 101, config.vocab_size, config.n_embd, config.n_layer, int(half)))
        for name, array in _stored(tensors):
            small = half and array.ndim == 2 and not name.endswith(".r_k")
            array = _cast(name, array, np.dtype(np.float16 if small else np.float32))
            key = name.encode()
            file.write(TENSOR.pack(array.ndim, len(key), int(small)))
            file.write(struct.pack(f"<{array.ndim}I", *reversed(array.shape)) + key)
            file.write(raw_bytes(array))


def _tensors(data: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Yields (key, array in C order) of every tensor in the file."""
    _check_header(*HEADER.unpack(data[: HEADER.size].tobytes()))
    at = HEADER.size
    while at < len(data):
        dims, key_length, kind = TENSOR.unpack(data[at : at + TENSOR.size].tobytes())
        at += TENSOR.size
        if dims > 4 or key_length > 256:
            raise CheckpointError(f"a tensor at byte {at} has {dims} dimensions: the file is damaged; get it again")
        shape = struct.unpack(f"<{dims}I", data[at : at + 4 * dims].tobytes())[::-1]
        at += 4 * dims
        key = data[at : at + key_length].tobytes().decode("utf-8")
        at += key_length
        dtype, stored = _stored_form(kind, key, shape)
        size = int(np.prod(stored, dtype=object)) * dtype.itemsize
        if at + size > len(data):
            raise CheckpointError(f"tensor {key} lies beyond the end of the file, which is truncated; get it again")
        array = view(data, at, dtype, stored)
        yield key, BlockMatrix(QUANTISED[kind], array) if kind in QUANTISED else array
        at += size


def _check_header(magic: int, version: int, *_: int) -> None:
    if magic != MAGIC:
        raise CheckpointError("not an rwkv.cpp file (wrong magic number); pass the .bin that rwkv.cpp wrote")
    if version not in VERSIONS:
        raise CheckpointError(f"rwkv.cpp file version {version}; versions {VERSIONS} are read, convert it again")


def _stored_form(kind: int, key: str, shape: tuple[int, ...]) -> tuple[np.dtype, tuple[int, ...]]:
    """Returns the dtype and shape of a tensor's bytes."""
    if kind in TYPES:
        return TYPES[kind], shape
    name, readable = QUANTISED.get(kind, f"number {kind}"), ", ".join(["FP32", "FP16", *BYTES])
    if name not in BYTES:
        raise CheckpointError(f"tensor {one_line(key, 80)} has the quantised type {name}; {readable} are read")
    if len(shape) != 2 or shape[1] % BLOCK:
        raise CheckpointError(
            f"tensor {one_line(key, 80)} of type {name} has shape {list(shape)}; "
            f"its blocks are of {BLOCK} numbers of a row: the file is damaged; get it again"
        )
    return np.dtype(np.uint8), (shape[0], shape[1] // BLOCK, BYTES[name])


def _released(name: str, array: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith(".x_rwkvag"):
        rows = np.asarray(array).reshape(6, -1)
        yield from ((f"{name.removesuffix('rwkvag')}{c}", row) for c, row in zip("rwkvag", rows, strict=True))
    else:
        yield name, np.asarray(array).T if LORA.fullmatch(name) else array


def _stored(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, array) as rwkv.cpp lays them out, in the order of the released names."""
    for name, array in tensors.items():
        array = np.asarray(array)
        prefix = name.removesuffix("x_r")
        if name.endswith(".att.x_r"):
            rows = [np.asarray(tensors[f"{prefix}x_{c}"]).reshape(1, -1) for c in "rwkvag"]
            yield f"{prefix}x_rwkvag", np.stack(rows)
        elif LORA.fullmatch(name):
            yield name, array.T
        elif not re.search(r"\.att\.x_[wkvag]$", name):
            yield name, array.reshape(1, 1, -1) if VECTOR.fullmatch(name) else array


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if not np.isfinite(out).all() and np.isfinite(array.astype(np.float32)).all():
        raise CheckpointError(f"{name} has values that {dtype} cannot hold; write FP32")
    return out
