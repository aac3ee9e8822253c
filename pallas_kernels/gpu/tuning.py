"""What can be tuned in the GPU kernels."""

import re
from typing import Literal, NamedTuple, TypeAlias

import jax

HOPPER = re.compile(r"\bG?(H|B)\d{2,3}\b")
"""In the names of GPUs of compute capability 9.0 and later."""
Form: TypeAlias = Literal["small", "sequential", "divided"]
"""Kernels in chunks of 16 tokens, one for each rule; in larger chunks, one for each rule but the full backward, which
is divided; all divided over time."""


class Divided(NamedTuple):
    """Choices for the kernels in chunks of 32 tokens: those that are divided over time, and those that follow it.

    chunk: tokens per chunk, a power of two, and per saved state; block: most rows of the state that one program of the
    scan has; warps of the programs that prepare the chunks, of the sequential ones on Hopper where there are resets, of
    the scan, of the outputs and of the gradients; stages: of the pipeline of the scan's loads.
    """

    chunk: int = 32
    block: int = 32
    prepare_warps: int = 4
    reset_warps: int = 8
    scan_warps: int = 4
    output_warps: int = 4
    gradient_warps: int = 8
    stages: int = 3


class Wide(NamedTuple):
    """Choices for the kernels for log_w down to -20.

    chunk: tokens per chunk, a power of two, at least 16, and per saved state; block: most rows of the state that one
    program has that follows time; warps of the programs that prepare the chunks, of those that follow time, and of
    those of the gradients; stages: of the pipeline of the loads of those that follow time.
    """

    chunk: int = 32
    block: int = 64
    prepare_warps: int = 4
    follow_warps: int = 4
    gradient_warps: int = 8
    stages: int = 2


class Tuning(NamedTuple):
    """Choices that change speed and rounding, not the function.

    chunk: tokens per chunk, a power of two, at least 16; checkpoint: tokens per saved state, `chunk` times a power of
    two; warps and stages: as in Triton, of the forward and the state's backward, and of the full backward; value_block:
    most rows of the state that one program has, a power of two, at least 16; form: of all kernels, None for what should
    be fastest; divided: choices for the forms in larger chunks, whose chunk must be `checkpoint`; wide: choices for the
    kernels for log_w down to -20, to which the others do not apply.
    """

    chunk: int = 16
    checkpoint: int = 32
    warps: int = 4
    stages: int = 2
    backward_warps: int = 8
    backward_stages: int = 1
    value_block: int = 64
    form: Form | None = None
    divided: Divided = Divided()
    wide: Wide = Wide()


BFLOAT16 = Tuning()
"""bfloat16 inputs."""
FLOAT32 = Tuning(
    checkpoint=64,
    warps=8,
    stages=1,
    value_block=16,
    wide=Wide(chunk=16, block=16, prepare_warps=4, follow_warps=4, stages=1),
)
"""float32 inputs, whose operands take four times the registers."""
FLOAT32_NARROW = FLOAT32._replace(
    warps=4, backward_warps=4, wide=FLOAT32.wide._replace(follow_warps=2, gradient_warps=4)
)
"""float32 inputs whose heads have at most 32 keys: more warps would compute the same, and spill."""


def before_hopper() -> bool:
    """Says whether programs are compiled for a GPU of compute capability 8; where nothing names one, they are not."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform == "gpu":
        return HOPPER.search(device.device_kind) is None
    return jax.default_backend() == "gpu" and float(jax.devices()[0].compute_capability) < 9
