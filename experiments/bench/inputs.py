"""What every measured process runs on: shapes and the same pseudo-text. Imports no JAX, for the peers' processes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

PREFILL, TUNE, PROMPT = 512, 512, 16
STEP, GREEDY, SAMPLED, FIRST = "step", "greedy", "top_p 0.85", "first token"
"""What decoding does: the bare step on one token, `generate`, or `generate` of the first token alone."""


class Timed(NamedTuple):
    """A job that is set up."""

    calls: Mapping[str, Callable[[], object]]
    """Functions to time, by name; "" is that of a job with one."""
    result: list[float]
    """For comparing."""
    weights: int = 0
    """Bytes of the weights, the embedding left out, of which a step reads one row."""


class Shape(NamedTuple):
    """Dimensions of a model; the others are the released models' defaults."""

    vocab_size: int
    n_layer: int
    n_embd: int


SHAPES = {"0.1B": Shape(65536, 12, 768), "tiny": Shape(512, 2, 128)}


def tokens(count: int, vocab: int) -> list[int]:
    """Returns the same pseudo-text in every process."""
    return [(7919 * i + 13) % (vocab - 1) + 1 for i in range(count)]


def decoded(kind: str, rows: int) -> int:
    """Returns how many tokens of each sequence one call decodes: fewer of many sequences, for the sake of time."""
    few = min(64, max(8, 512 // rows))
    return few if kind == STEP else max(32, few)
