"""WKV-7 with a hand-written gradient in matrix form: the CPU default and the fallback on every device.

The schedule (`sequential` on CPU, `parallel` elsewhere) is chosen when the program is lowered, so compiling for a
device that is not attached gets the right one. Both keep the same residuals.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from pallas_kernels.chunked import parallel, sequential
from pallas_kernels.chunked.layout import OpInputs, saved_for_state, varying


def by_platform(rule: str) -> Callable[..., Any]:
    """The function called `rule` of the schedule for the platform that the program is lowered for."""
    return partial(lax.platform_dependent, cpu=getattr(sequential, rule), default=getattr(parallel, rule))


def make_op(
    schedule: Callable[[str], Callable[..., Any]], nothing: Callable[[OpInputs], Any] = saved_for_state
) -> Callable[..., tuple[Array, Array]]:
    """The op with its gradient, from a function that finds `forward`, `backward`, ... by name.

    `nothing` makes the residuals of the gradient of s0 alone, of the structure that `forward_saving` returns.

    Returns op(r, log_w, k, v, a, b, s0, reset=None) -> (y, s_T) with the shapes and dtypes of `reference.wkv7_scan`,
    differentiable once, in reverse mode.
    """

    @jax.custom_vjp
    def op(r, log_w, k, v, a, b, s0, reset=None):
        return schedule("forward")(OpInputs(r, log_w, k, v, a, b, reset), s0)

    def forward(*args):
        values: list[Any] = [None if x is None else x.value for x in args]
        r, log_w, k, v, a, b, s0, reset = values
        x = OpInputs(r, log_w, k, v, a, b, reset)
        if any(z.perturbed for z in args[:6]):
            y, s_last, saved = schedule("forward_saving")(x, s0)
            return (y, s_last), saved
        return schedule("forward")(x, s0), nothing(x)

    def backward(saved: Any, cotangents: tuple):
        dy, ds = (_dense(z) for z in cotangents)
        if saved.for_state_only:
            return (*(None,) * 6, schedule("state_backward")(saved.inputs, dy, ds), None)
        return (*schedule("backward")(saved, dy, ds), None)

    op.defvjp(forward, backward, symbolic_zeros=True)
    return op


def _dense(cotangent: Any) -> Array:
    """The array that a cotangent stands for."""
    if isinstance(cotangent, SymbolicZero):
        aval: Any = cotangent.aval
        return varying(jnp.zeros(aval.shape, aval.dtype), aval.manual_axis_type.varying)
    return cotangent


wkv7_chunked = make_op(by_platform)
