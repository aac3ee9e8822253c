"""The op that picks its kernels when the program is lowered: by platform, and by the size of the heads.

Compiling for a device that is not attached therefore gets that device's kernels. Only the branch of the platform is
lowered; what the others would have saved for their backward is zeros that nothing reads, which the compiler drops.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from pallas_kernels import decode, gpu, tpu
from pallas_kernels.chunked import op as chunked
from pallas_kernels.chunked import parallel, sequential
from pallas_kernels.chunked.layout import OpInputs, Saved

Rule = Callable[..., PyTree]
Rules = Callable[[str], Rule]
"""`forward`, `forward_saving`, `backward` and `state_backward` by name, as `chunked.make_op` takes them."""


class Kernels(NamedTuple):
    """Kernels for one platform. supports(K, V): whether there are any for heads of these sizes."""

    platform: str
    supports: Callable[[int, int], bool]
    rules: Rules


class Choice(NamedTuple):
    """Residuals: what the op took, and what `Saved` has beside that, (states, u), of each way to compute it."""

    inputs: OpInputs
    parts: tuple[tuple[Array, Array], ...]

    @property
    def for_state_only(self) -> bool:
        """Whether s0 alone is differentiated."""
        return self.parts[0][0].shape[0] == 0


KERNELS = (
    Kernels("tpu", tpu.supports, partial(getattr, tpu.rules)),
    Kernels("cuda", gpu.supports, gpu.rule),
)


def make_op(kernels: tuple[Kernels, ...] = KERNELS) -> Callable[..., tuple[Array, Array]]:
    """Returns the op, see `chunked.make_op`: the kernels of the platform if they support the heads, else `chunked`."""
    return chunked.make_op(lambda rule: partial(_RULES[rule], kernels), partial(_saved_for_state, kernels))


def _fitting(kernels: tuple[Kernels, ...], x: OpInputs) -> dict[str, Rules]:
    """Rules by platform, those of the fallback first."""
    own = {k.platform: k.rules for k in kernels if k.supports(x.r.shape[3], x.v.shape[3])}
    return {"default": partial(getattr, parallel), **own}


def _by_platform(rules: dict[str, Rules], rule: str, *args: PyTree) -> PyTree:
    branches = {platform: own(rule) for platform, own in rules.items()}
    return lax.platform_dependent(*args, cpu=getattr(sequential, rule), **branches)


def _forward(kernels: tuple[Kernels, ...], x: OpInputs, s0: Array) -> tuple[Array, Array]:
    if x.v.shape[1] == 1:
        return decode.forward(x, s0)
    return _by_platform(_fitting(kernels, x), "forward", x, s0)


def _state_backward(kernels: tuple[Kernels, ...], x: OpInputs, dy: Array, ds: Array) -> Array:
    return _by_platform(_fitting(kernels, x), "state_backward", x, dy, ds)


def _saved_for_state(kernels: tuple[Kernels, ...], x: OpInputs) -> Choice:
    """Residuals of the gradient of s0 alone."""
    return Choice(x, ((jnp.zeros((0,)), jnp.zeros((0,))),) * len(_fitting(kernels, x)))


def _forward_saving(kernels: tuple[Kernels, ...], x: OpInputs, s0: Array) -> tuple[Array, Array, Choice]:
    rules = _fitting(kernels, x)
    shapes = {platform: jax.eval_shape(own("forward_saving"), x, s0)[2][1:] for platform, own in rules.items()}

    def run(platform: str, function: Rule, x: OpInputs, s0: Array) -> tuple:
        y, s_last, saved = function(x, s0)
        unused = {p: tuple(jnp.zeros_like(s0, z.dtype, z.shape) for z in shape) for p, shape in shapes.items()}
        return y, s_last, tuple((unused | {platform: tuple(saved[1:])}).values())

    branches = {platform: partial(run, platform, own("forward_saving")) for platform, own in rules.items()}
    cpu = partial(run, "default", sequential.forward_saving)
    y, s_last, parts = lax.platform_dependent(x, s0, cpu=cpu, **branches)
    return y, s_last, Choice(x, parts)


def _backward(kernels: tuple[Kernels, ...], choice: Choice, dy: Array, ds: Array) -> tuple[Array, ...]:
    rules = _fitting(kernels, choice.inputs)

    def run(part: int, function: Rule, choice: Choice, dy: Array, ds: Array) -> tuple[Array, ...]:
        return tuple(function(Saved(choice.inputs, *choice.parts[part]), dy, ds))

    branches = {platform: partial(run, i, own("backward")) for i, (platform, own) in enumerate(rules.items())}
    return lax.platform_dependent(choice, dy, ds, cpu=partial(run, 0, sequential.backward), **branches)


_RULES: dict[str, Rule] = {
    "forward": _forward,
    "forward_saving": _forward_saving,
    "backward": _backward,
    "state_backward": _state_backward,
}

wkv7_auto = make_op()
