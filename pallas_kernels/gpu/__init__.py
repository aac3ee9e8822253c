"""WKV-7 as Pallas kernels for NVIDIA GPUs from Ampere on, through Pallas's Triton lowering.

The mathematics of `pallas_kernels.chunked.math` in chunks of 16 or 32 tokens, divided over time or with the state in
registers; `gpu.launch` chooses. For log_w down to -20 level by level, as in `chunked.levels`: `gpu.wide`.
bfloat16 inputs are multiplied in bfloat16 with float32 sums and state; float32 inputs, or a mixture, by six bfloat16
products each, which is as exact as float32. Any T; head sizes that are no power of two are masked.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
from jax import Array
from jaxtyping import PyTree

from pallas_kernels.chunked import op as chunked
from pallas_kernels.gpu.launch import Launch
from pallas_kernels.gpu.tuning import Tuning
from pallas_kernels.support import for_sizes

MAX_SIZE = 64
"""Largest K and V: what one program holds in registers."""
SIZES = f"K and V up to {MAX_SIZE}"

__all__ = ["MAX_SIZE", "SIZES", "Tuning", "make_op", "rule", "supports", "wkv7_gpu", "wkv7_gpu_wide"]


def supports(key: int, value: int) -> bool:
    """Says whether there is a kernel for heads of these sizes."""
    return max(key, value) <= MAX_SIZE


@cache
def rule(name: str, tuning: Tuning | None = None, interpret: bool = False, wide: bool = False) -> Callable[..., PyTree]:
    """Returns `forward`, `forward_saving`, `backward` or `state_backward` for `chunked.make_op`, traced once.

    wide: for log_w down to -20.
    """
    return jax.jit(getattr(Launch(tuning, interpret, wide), name))


def make_op(
    tuning: Tuning | None = None, interpret: bool = False, wide: bool = False
) -> Callable[..., tuple[Array, Array]]:
    """Makes the op, see `chunked.make_op`.

    tuning: None chooses by dtype; interpret: run the kernels on a CPU; wide: for log_w down to -20.

    Raises (the op):
        ValueError: heads of a size that has no kernel; when compiled for anything but a GPU, unless interpreted.
    """
    op = chunked.make_op(partial(rule, tuning=tuning, interpret=interpret, wide=wide))
    return for_sizes(op, "gpu", supports, SIZES)


wkv7_gpu = make_op()
wkv7_gpu_wide = make_op(wide=True)
"""The same for log_w down to -20."""
