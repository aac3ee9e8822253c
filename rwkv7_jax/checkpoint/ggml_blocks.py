"""ggml's quantised matrices: rows of blocks of 32 numbers, read block by block into float32.

    Q4_0  d (float16), 16 bytes                  w = d (q - 8)
    Q4_1  d, m (float16), 16 bytes               w = d q + m
    Q5_0  d, 4 bytes of fifth bits, 16 bytes     w = d (q - 16)
    Q5_1  d, m, 4 bytes of fifth bits, 16 bytes  w = d q + m
    Q8_0  d, 32 bytes                            w = d q

Of the 16 bytes, the low four bits are the first 16 numbers, the high ones the rest.
"""

import numpy as np
from numpy.typing import DTypeLike

BLOCK = 32
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
"""Bytes of a block."""
OFFSET = {"Q4_0": 8, "Q5_0": 16}
"""What is taken from the stored integers of the types without a minimum."""


class BlockMatrix:
    """A quantised matrix [O, K] as its file holds it, which is turned to float32 where it is indexed."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, kind: str, blocks: np.ndarray):
        """Takes the type's name and the bytes, uint8 [O, K / 32, bytes of a block]."""
        self.kind, self.blocks = kind, blocks
        self.shape = (blocks.shape[0], blocks.shape[1] * BLOCK)
        self.size = self.shape[0] * self.shape[1]

    def __getitem__(self, index: int | slice | tuple[slice, ...]) -> np.ndarray:
        """Returns rows, or slices of both axes, in float32; only the rows that are taken are converted."""
        if isinstance(index, int):
            return self[index : index + 1 or None][0]
        rows, *rest = index if isinstance(index, tuple) else (index,)
        return _numbers(self.kind, self.blocks[rows])[(slice(None), *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = _numbers(self.kind, self.blocks)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int | tuple[int, ...]) -> "np.ndarray | BlockMatrix":
        """Returns itself where `shape` is its own, else the numbers in that shape."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return self if wanted == self.shape else np.asarray(self).reshape(wanted)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def astype(self, dtype: DTypeLike, copy: bool = True) -> np.ndarray:
        """Returns the numbers in another dtype."""
        return np.asarray(self).astype(dtype, copy=copy)


def _numbers(kind: str, blocks: np.ndarray) -> np.ndarray:
    """Returns float32 [O, K] of bytes [O, blocks, bytes of a block]."""
    scale, rest = _half(blocks[..., :2]), blocks[..., 2:]
    minimum: np.ndarray | float = 0.0
    if kind.endswith("_1"):
        minimum, rest = _half(rest[..., :2]), rest[..., 2:]
    if kind == "Q8_0":
        integers = rest.view(np.int8).astype(np.float32)
    else:
        fifth, rest = (rest[..., :4], rest[..., 4:]) if kind.startswith("Q5") else (None, rest)
        stored = np.concatenate([rest & 0xF, rest >> 4], axis=-1)
        if fifth is not None:
            stored |= np.unpackbits(fifth, axis=-1, bitorder="little") << 4
        integers = stored.astype(np.float32) - np.float32(OFFSET.get(kind, 0))
    return (integers * scale + np.float32(0) + minimum).astype(np.float32).reshape(len(blocks), -1)


def _half(pair: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pair).view("<f2").astype(np.float32)
