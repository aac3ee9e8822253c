"""Quantised weights in safetensors: each linear matrix as its integers, and `NAME.scales` beside it.

`weights_hash` of the metadata is that of the weights before they were quantised: states name their base model by it, so
that a state tuned on quantised weights belongs to the others too. `numbers_hash` is checked when the file is read.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np

from rwkv7_jax.checkpoint import safetensors
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, one_line, raw_bytes
from rwkv7_jax.checkpoint.lazy import LazyMatrix, Tensor
from rwkv7_jax.quantisation import Bits, QuantisedWeight, quantise, to_numpy

LAYOUT = "quantised"
SCALES = ".scales"
LINEAR = re.compile(r"head\.weight|blocks\.\d+\.(att\.(receptance|key|value|output)|ffn\.(key|value))\.weight")
"""Released names of the matrices that are quantised."""


class StoredMatrix(LazyMatrix):
    """A matrix that its file holds quantised."""

    def __init__(self, weight: QuantisedWeight):
        *_, rows, width = weight.shape
        super().__init__((rows, width))
        self.weight = weight

    def rows(self, taken: slice) -> np.ndarray:
        """Returns rows in float32."""
        values, scales = map(np.asarray, self.weight)
        return to_numpy(QuantisedWeight(values[taken], scales[taken]))

    def is_finite(self) -> bool:
        """Tells whether all numbers are finite, by the scales."""
        return bool(np.isfinite(np.asarray(self.weight.scales)).all())


def write(path: PathLike, flat: Mapping[str, Tensor], bits: Bits, weights_hash: str) -> None:
    """Writes weights with their linear matrices quantised, atomically; all else keeps its dtype.

    Args:
      path: the `.safetensors` file.
      flat: tensors by released name.
      bits: 8 or 4.
      weights_hash: of the weights before.

    Raises:
      CheckpointError: names a matrix that cannot be quantised.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        if not LINEAR.fullmatch(name):
            tensors[name] = np.asarray(array)
            continue
        try:
            weight = stored(array, bits)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None
        tensors |= {name: np.asarray(weight.values), name + SCALES: np.asarray(weight.scales)}
    metadata = {"format": "pt", "layout": LAYOUT, "weights_hash": weights_hash, "numbers_hash": numbers_hash(tensors)}
    safetensors.write(path, tensors, metadata)


def stored(array: Tensor, bits: Bits | None) -> QuantisedWeight:
    """Returns a matrix quantised; one that is stored so with these `bits` (None: any) is not touched."""
    if isinstance(array, StoredMatrix) and bits in (None, array.weight.bits):
        return array.weight
    return quantise(array, bits or 8)


def joined(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the tensors of a quantised file, each matrix with its scales as one `StoredMatrix`.

    Raises:
      CheckpointError: one line, for numbers and scales that do not fit each other, or a wrong hash.
    """
    if metadata.get("numbers_hash") != numbers_hash(tensors):
        raise CheckpointError("the numbers do not match the hash stored with them: damaged; copy the file again")
    return {
        name: _matrix(name, array, tensors.get(name + SCALES)) if LINEAR.fullmatch(name) else array
        for name, array in tensors.items()
        if not name.endswith(SCALES)
    }


def numbers_hash(tensors: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 (hex) of tensors as they are stored: names, dtypes, shapes and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        whole.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        whole.update(raw_bytes(array))
    return whole.hexdigest()


def _matrix(name: str, values: Tensor, scales: Tensor | None) -> StoredMatrix:
    values, what = np.asarray(values), one_line(name, 80)
    if scales is None:
        raise CheckpointError(f"{what} has no scales; the file is incomplete, convert the checkpoint again")
    scales = np.asarray(scales)
    if values.dtype not in (np.int8, np.uint8):
        raise CheckpointError(f"{what} has the unknown quantised type {values.dtype}; int8 and packed 4-bit are read")
    if scales.dtype != np.float32 or values.ndim != 2 or scales.ndim != 2 or len(scales) != len(values):
        raise CheckpointError(
            f"{what} has numbers {values.dtype}{list(values.shape)} and scales {scales.dtype}{list(scales.shape)}, "
            "which do not belong together; convert the checkpoint again"
        )
    weight, groups = QuantisedWeight(values, scales), scales.shape[1]
    width = weight.shape[-1]
    if not groups or width % groups or (weight.bits == 4 and width // groups % 2):
        raise CheckpointError(f"{what} has {groups} scales for rows of {width} numbers; convert the checkpoint again")
    return StoredMatrix(weight)
