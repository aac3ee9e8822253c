"""What can be tuned in the GPU kernels."""

from typing import NamedTuple


class Tuning(NamedTuple):
    """Choices that change speed and rounding, not the function.

    chunk: tokens per chunk, a power of two, at least 16; checkpoint: tokens per saved state, `chunk` times a power of
    two; warps and stages: as in Triton, of the forward and the state's backward, and of the full backward; value_block:
    most rows of the state that one program has, a power of two, at least 16.
    """

    chunk: int = 16
    checkpoint: int = 64
    warps: int = 4
    stages: int = 2
    backward_warps: int = 8
    backward_stages: int = 1
    value_block: int = 64


BFLOAT16 = Tuning()
"""bfloat16 inputs: no spills on compute capability 9.0."""
FLOAT32 = Tuning(warps=8, stages=1, value_block=16)
"""float32 inputs, whose operands take four times the registers."""
