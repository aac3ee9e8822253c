"""WKV-7 as Pallas kernels for TPU: forward, full backward, and the backward of the state alone.

The same chunked mathematics as `pallas_kernels.chunked.math`, in chunks of 64 tokens, with heads packed into the lanes
of the matrix unit. bfloat16 inputs are multiplied as they are, with float32 accumulation and state; float32 inputs take
products in full float32.
"""

from collections.abc import Callable
from functools import partial

from jax import Array
from jax.experimental.pallas import tpu as pallas_tpu
from jaxtyping import PyTree

from pallas_kernels.chunked import op as chunked
from pallas_kernels.support import for_sizes
from pallas_kernels.tpu import rules

HEAD_SIZES = (64, 128)


def supports(key: int, value: int) -> bool:
    """Says whether there is a kernel for heads of these sizes."""
    return key == value and key in HEAD_SIZES


def rule(name: str, *, wide: bool = False, unit: int | None = None) -> Callable[..., PyTree]:
    """Returns `forward`, `forward_saving`, `backward` or `state_backward` for `chunked.make_op`.

    wide: for log_w down to -20 instead of -2.7; unit: width of the matrix units, None for that of the TPU.
    """
    return partial(getattr(rules, name), wide=wide, unit=unit)


def make_op(
    interpret: bool | pallas_tpu.InterpretParams = False, *, wide: bool = False, unit: int | None = None
) -> Callable[..., tuple[Array, Array]]:
    """Makes the op, see `chunked.make_op`.

    interpret: as `pallas_call` takes it, to run the kernels without a TPU; wide: for log_w down to -20 instead of -2.7;
    unit: width of the matrix units, 128 or 256, None for that of the TPU.

    Raises (the op):
        ValueError: heads of a size that has no kernel; when compiled for anything but a TPU, unless interpreted.
    """
    op = chunked.make_op(lambda name: partial(rule(name, wide=wide, unit=unit), interpret=interpret))
    return for_sizes(op, "tpu", supports, "K = V = 64 or 128")


wkv7_tpu = make_op()
wkv7_tpu_wide = make_op(wide=True)
"""The same for log_w down to -20."""
