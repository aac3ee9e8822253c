"""ggml's quantised matrices: rows of blocks of 32 numbers, read block by block into float32.

    Q4_0  d (float16), 16 bytes                  w = d (q - 8)
    Q4_1  d, m (float16), 16 bytes               w = d q + m
    Q5_0  d, 4 bytes of fifth bits, 16 bytes     w = d (q - 16)
    Q5_1  d, m, 4 bytes of fifth bits, 16 bytes  w = d q + m
    Q8_0  d, 32 bytes                            w = d q

Of the 16 bytes, the low four bits are the first 16 numbers, the high ones the rest.
"""

import numpy as np

from rwkv7_jax.checkpoint.lazy import LazyMatrix

BLOCK = 32
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
"""Bytes of a block."""
OFFSET = {"Q4_0": 8, "Q5_0": 16}
"""What is taken from the stored integers of the types without a minimum."""


class BlockMatrix(LazyMatrix):
    """A quantised matrix [O, K] as its file holds it."""

    def __init__(self, kind: str, blocks: np.ndarray):
        """Takes the type's name and the bytes, uint8 [O, K / 32, bytes of a block]."""
        super().__init__((blocks.shape[0], blocks.shape[1] * BLOCK))
        self.kind, self.blocks = kind, blocks

    def rows(self, taken: slice) -> np.ndarray:
        """Returns rows in float32."""
        return _numbers(self.kind, self.blocks[taken])


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
    return (integers * scale + minimum).reshape(len(blocks), -1)


def _half(pair: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pair).view("<f2").astype(np.float32)
