"""What every measured process runs on: shapes and the same pseudo-text. Imports no JAX, for the peers' processes."""

from collections.abc import Callable
from typing import NamedTuple

PREFILL, TUNE, DECODE, PROMPT = 512, 512, 32, 16

Timed = tuple[Callable[[], object], list[float]]
"""The function to time, and its result, for comparing."""


class Shape(NamedTuple):
    """Dimensions of a model; the others are the released models' defaults."""

    vocab_size: int
    n_layer: int
    n_embd: int


class Decode(NamedTuple):
    """What a decoding job does: the bare step, or whole generation, of some sequences."""

    kind: str
    dtype: str
    rows: int

    @property
    def name(self) -> str:
        """The task in a worker's command line."""
        return f"decoding of {self.rows} in {self.dtype}: {self.kind}"

    @classmethod
    def parse(cls, name: str) -> "Decode":
        """Reads a name."""
        words, kind = name.split(": ")
        *_, rows, _, dtype = words.split()
        return cls(kind, dtype, int(rows))


SHAPES = {"0.1B": Shape(65536, 12, 768), "tiny": Shape(512, 2, 128)}


def tokens(count: int, vocab: int) -> list[int]:
    """Returns the same pseudo-text in every process."""
    return [(7919 * i + 13) % (vocab - 1) + 1 for i in range(count)]
