"""WKV-7 with a hand-written gradient in matrix form: the CPU default and the fallback on every device.

The schedule (`sequential` on CPU, `parallel` elsewhere) is chosen when the program is lowered, so compiling for a
device that is not attached gets the right one. Both keep the same residuals.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from pallas_kernels.chunked import parallel, sequential
from pallas_kernels.chunked.forms import LEVELS
from pallas_kernels.chunked.layout import OpInputs, saved_for_state, varying


@runtime_checkable
class Residuals(Protocol):
    """What the forward keeps for the backward; the structure is free beside these two."""

    @property
    def inputs(self) -> OpInputs:
        """Inputs of the op."""
        ...

    @property
    def for_state_only(self) -> bool:
        """Whether s0 alone is differentiated."""
        ...


def cpu_rule(rule: str, *, wide: bool = False) -> Callable[..., PyTree]:
    """Returns the function called `rule` of the schedule for CPU. wide: for log_w down to -20."""
    function = getattr(sequential, rule)
    return partial(function, form=LEVELS) if wide and rule == "backward" else function


def accelerator_rule(rule: str, *, wide: bool = False) -> Callable[..., PyTree]:
    """Returns the function called `rule` of the schedule for accelerators. wide: for log_w down to -20."""
    function = getattr(parallel, rule)
    return partial(function, form=LEVELS) if wide else function


def by_platform(rule: str, *, wide: bool = False) -> Callable[..., PyTree]:
    """Returns the function called `rule` of the schedule for the platform that the program is lowered for."""
    return partial(lax.platform_dependent, cpu=cpu_rule(rule, wide=wide), default=accelerator_rule(rule, wide=wide))


def make_op(
    schedule: Callable[[str], Callable[..., PyTree]], for_state: Callable[[OpInputs], Residuals] = saved_for_state
) -> Callable[..., tuple[Array, Array]]:
    """Makes the op with its gradient.

    Args:
      schedule: finds `forward`, `forward_saving`, `backward` and `state_backward` by name.
      for_state: makes the residuals of the gradient of s0 alone, of the structure that `forward_saving` returns.

    Returns:
      op(r, log_w, k, v, a, b, s0, reset=None) -> (y, s_T) with the shapes and dtypes of `reference.wkv7_scan`,
      differentiable once, in reverse mode.
    """

    @jax.custom_vjp
    def op(r, log_w, k, v, a, b, s0, reset=None):
        return schedule("forward")(OpInputs(r, log_w, k, v, a, b, reset), s0)

    def forward(*args):
        *vectors, s0, reset = args
        x = OpInputs(*(z.value for z in vectors), reset=None if reset is None else reset.value)
        if any(z.perturbed for z in vectors):
            y, s_last, saved = schedule("forward_saving")(x, s0.value)
            return (y, s_last), saved
        return schedule("forward")(x, s0.value), for_state(x)

    def backward(saved: Residuals, cotangents: tuple):
        dy, ds = (_dense(z) for z in cotangents)
        if saved.for_state_only:
            return (*(None,) * 6, schedule("state_backward")(saved.inputs, dy, ds), None)
        return (*schedule("backward")(saved, dy, ds), None)

    op.defvjp(forward, backward, symbolic_zeros=True)
    return op


def _dense(cotangent: Array | SymbolicZero) -> Array:
    """The array that a cotangent stands for."""
    if isinstance(cotangent, SymbolicZero):
        aval: ShapedArray = cotangent.aval  # type: ignore[assignment]
        return varying(jnp.zeros(aval.shape, aval.dtype), aval.manual_axis_type.varying)
    return cotangent


wkv7_chunked = make_op(by_platform)
wkv7_chunked_wide = make_op(partial(by_platform, wide=True))
"""The same for log_w down to -20."""
