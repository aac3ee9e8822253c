"""What every measured process runs on: shapes and the same pseudo-text. Imports no JAX, for the peers' processes."""

from collections.abc import Callable
from typing import NamedTuple

PREFILL, TUNE, DECODE = 512, 512, 32

Timed = tuple[Callable[[], object], list[float]]
"""The function to time, and its result, for comparing."""


class Shape(NamedTuple):
    """Dimensions of a model; the others are the released models' defaults."""

    vocab_size: int
    n_layer: int
    n_embd: int


SHAPES = {"0.1B": Shape(65536, 12, 768), "tiny": Shape(512, 2, 128)}


def tokens(count: int, vocab: int) -> list[int]:
    """Returns the same pseudo-text in every process."""
    return [(7919 * i + 13) % (vocab - 1) + 1 for i in range(count)]
