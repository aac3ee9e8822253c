"""BlinkDL's `.pth`: a torch zip archive, read and written without torch.

{root}/data.pkl    names, shapes and strides (see torch_pickle)
{root}/data/{key}  one storage, uncompressed, so tensors are views of the memory-mapped file

The zip file's CRC-32 of every entry is checked as it is read, at 2.7 GB/s on one core: 0.35 s for a 0.4B model in
bfloat16, next to 0.8 s for the SHA-256 of its weights. Files of `torch.serialization.set_crc32_options(False)`, where
all are 0, have none.
"""

import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, atomic, guard, mapped, raw_bytes, view
from rwkv7_jax.checkpoint.layouts import to_released
from rwkv7_jax.checkpoint.lazy import Tensor
from rwkv7_jax.checkpoint.torch_pickle import STORAGES, StorageRef, TensorRef, read_pickle

MAGIC = b"PK\x03\x04"
PICKLE = b"\x80"
"""First byte of a bare pickle: torch's own format before version 1.6."""
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
ALIGNMENT = 64
MAX_SHARED = 4
MAX_EXPANDED = 2**26
"""Tensors may share storages and repeat numbers (stride 0): their bytes are at most 4 times the file's and 64 MiB."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where training tools keep the tensors of a model, the first ones before others that are there too."""
PLAIN = (bool, int, float, str, type(None))
"""What may lie beside tensors: a step, a name."""
DEEPEST = 4


def read(path: PathLike) -> dict[str, np.ndarray]:
    """Reads tensors by released name, as read-only views of the memory-mapped file.

    Raises:
      CheckpointError: one line, for anything but plain tensors in a sound torch zip file.
    """
    with guard(path, "a torch .pth file"):
        return to_released(read_tensors(path))[0]


def read_tensors(path: PathLike) -> dict[str, np.ndarray]:
    """Reads tensors by the names that the file gives them.

    Raises:
      CheckpointError: as for `read`.
    """
    with guard(path, "a torch .pth file"):
        archive = _Archive(path)
        refs = _tensor_refs(read_pickle(archive.pickle()))
        numbers = sum(math.prod(ref.shape) * ref.storage.dtype.itemsize for ref in refs.values())
        if numbers > MAX_SHARED * len(archive.bytes) + MAX_EXPANDED:
            raise CheckpointError(f"its tensors are {numbers} bytes of views, the file has {len(archive.bytes)}")
        with ThreadPoolExecutor() as pool:  # each storage once, as several tensors may share one
            list(pool.map(archive.storage, dict.fromkeys(ref.storage for ref in refs.values())))
        return {name: archive.tensor(ref) for name, ref in refs.items()}


def write(path: PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Writes a file atomically that `torch.load` opens.

    Raises:
      CheckpointError: a dtype that torch's format has no storage for.
    """
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in STORAGES.values():
            raise CheckpointError(f"{path}: {name} is {array.dtype}, which a .pth file cannot hold; cast it")
    root = pathlib.Path(path).stem or "archive"
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, f"{root}/data.pkl", memoryview(_pickle(arrays)))
        _write_entry(archive, f"{root}/byteorder", memoryview(b"little"))
        for i, array in enumerate(arrays.values()):
            _write_entry(archive, f"{root}/data/{i}", raw_bytes(array))
        _write_entry(archive, f"{root}/version", memoryview(b"3\n"))


class _Archive:
    """The entries of a torch zip file as slices of one memory map."""

    def __init__(self, path: PathLike):
        self.bytes = mapped(path)
        self.storages: dict[StorageRef, np.ndarray] = {}
        _reject_other_containers(self.bytes[:64].tobytes())
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        self.entries = {info.filename: info for info in infos}
        if len(self.entries) != len(infos):
            raise CheckpointError("two entries of the zip file have the same name; export it again")
        for name in self.entries:
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
                raise CheckpointError(f"entry {name} of the zip file points outside of it; do not trust this file")
        roots = [name.removesuffix("data.pkl") for name in self.entries if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise CheckpointError("a zip file, but not one that torch.save wrote (no single data.pkl in it)")
        self.root = roots[0]
        self.checksums = any(info.CRC for info in infos)
        order = f"{self.root}byteorder"
        if order in self.entries and self.slice(order).tobytes().strip() != b"little":
            raise CheckpointError("written on a big-endian machine; re-save it on a little-endian one")

    def pickle(self) -> bytes:
        """Returns the bytes of the pickle."""
        return self.slice(f"{self.root}data.pkl").tobytes()

    def slice(self, name: str) -> np.ndarray:
        """Returns a view of the bytes of one stored entry, whose CRC-32 is right."""
        if name not in self.entries:
            raise CheckpointError(f"entry {name} is not in the zip file; the file is incomplete, export it again")
        info = self.entries[name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError("the zip entries are compressed; re-save with torch.save, which stores them plainly")
        if info.flag_bits & 0x1:
            raise CheckpointError("the zip entries are encrypted; save the file without a password")
        header = self.bytes[info.header_offset : info.header_offset + LOCAL_HEADER.size].tobytes()
        signature, *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if signature != MAGIC or start + info.file_size > len(self.bytes):
            raise CheckpointError(f"entry {name} lies outside of the file, which is truncated or damaged; get it again")
        data = self.bytes[start : start + info.file_size]
        if self.checksums and zlib.crc32(data.data) != info.CRC:
            raise CheckpointError(f"entry {name} does not have the CRC-32 stored with it: damaged; copy the file again")
        return data

    def tensor(self, ref: TensorRef) -> np.ndarray:
        """Returns a tensor as a view of its storage."""
        numbers = self.storage(ref.storage)
        if 0 in ref.shape:
            return np.empty(ref.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in ref.strides]
        return np.lib.stride_tricks.as_strided(numbers[ref.offset :], ref.shape, strides, writeable=False)

    def storage(self, ref: StorageRef) -> np.ndarray:
        """Returns the numbers of one storage, the same array for every tensor that shares it."""
        if ref not in self.storages:
            dtype, key, numel = ref
            data = self.slice(f"{self.root}data/{key}")
            if len(data) != numel * dtype.itemsize:
                raise CheckpointError(
                    f"storage {key} has {len(data)} bytes, but {numel} numbers of {dtype} are announced"
                )
            self.storages[ref] = view(data, 0, dtype, (numel,))
        return self.storages[ref]


def _tensor_refs(tree: object) -> dict[str, TensorRef]:
    """Finds the state dict in what a pickle described, at the top or where training tools keep it."""
    found = _state_dicts(tree, DEEPEST) if isinstance(tree, dict) else []
    if len({id(one) for one in found}) > 1:
        raise CheckpointError("holds several dicts of tensors; save the model's state_dict() alone")
    if not found:
        raise CheckpointError("holds no dict of tensors; save model.state_dict()")
    (tensors,) = found[:1]
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, (TensorRef, *PLAIN)):
            raise CheckpointError(f"entry {name!r:.200} is not a tensor; save model.state_dict() alone")
    return {str(name): value for name, value in tensors.items() if isinstance(value, TensorRef)}


def _state_dicts(tree: dict, depth: int) -> list[dict]:
    """The dicts that hold tensors: this one, else that of a usual name, else all below but those of an optimiser."""
    if any(isinstance(value, TensorRef) for value in tree.values()):
        return [tree]
    inner = {name: value for name, value in tree.items() if isinstance(value, dict) and "optim" not in str(name)[:64]}
    usual = [inner[name] for name in WRAPPERS if name in inner][:1]
    below = usual or list(inner.values())
    return [one for value in below for one in _state_dicts(value, depth - 1)] if depth else []


def _reject_other_containers(head: bytes) -> None:
    if head.startswith(PICKLE):
        raise CheckpointError(
            "a bare pickle (torch's format before 1.6, or no checkpoint); re-save it with a current torch.save"
        )
    if not head.startswith(MAGIC):
        raise CheckpointError("not a torch .pth file (no zip archive); pass the checkpoint itself")


def _write_entry(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """Stores one entry, its bytes starting at a multiple of `ALIGNMENT` as torch writes them."""
    info = zipfile.ZipInfo(name)
    info.file_size = len(data)
    zip64 = 20 if info.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0
    start = archive.start_dir + LOCAL_HEADER.size + len(name.encode()) + zip64 + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w") as entry:
        for at in range(0, len(data), 1 << 24):
            entry.write(data[at : at + (1 << 24)])


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Returns the `data.pkl` of {name: tensor}, tensor number i (contiguous) in entry `data/{i}`, by protocol 2."""
    parts = [b"\x80\x02}("]
    names = {dtype: name for name, dtype in STORAGES.items()}
    for i, (name, array) in enumerate(tensors.items()):
        strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        parts += [_text("storage"), f"ctorch\n{names[array.dtype]}\n".encode(), _text(str(i)), _text("cpu")]
        parts += [_integer(array.size), b"tQ", _integer(0), _integers(array.shape), _integers(strides)]
        parts.append(b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join(parts) + b"u."


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
