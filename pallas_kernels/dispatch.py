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
from pallas_kernels.chunked.layout import OpInputs, Saved, varying

Rule = Callable[..., PyTree]
Rules = Callable[[str], Rule]
"""`forward`, `forward_saving`, `backward` and `state_backward` by name, as `chunked.make_op` takes them."""


class Kernels(NamedTuple):
    """Kernels for one platform. supports(K, V): whether there are any for heads of these sizes."""

    platform: str
    supports: Callable[[int, int], bool]
    rules: Rules


class Family(NamedTuple):
    """All ways to compute the op for one range of decays: kernels, and the schedules of `chunked`."""

    kernels: tuple[Kernels, ...]
    cpu: Rules
    default: Rules


class Choice(NamedTuple):
    """Residuals: what the op took, and what `Saved` has beside that, (states, u), of each way to compute it."""

    inputs: OpInputs
    parts: tuple[tuple[Array, Array], ...]

    @property
    def for_state_only(self) -> bool:
        """Whether s0 alone is differentiated."""
        return self.parts[0][0].shape[0] == 0


KERNELS = (
    Kernels("tpu", tpu.supports, tpu.rule),
    Kernels("cuda", gpu.supports, gpu.rule),
)
WIDE_KERNELS = (
    Kernels("tpu", tpu.supports, partial(tpu.rule, wide=True)),
    Kernels("cuda", gpu.supports, partial(gpu.rule, wide=True)),
)

NARROW = Family(KERNELS, chunked.cpu_rule, chunked.accelerator_rule)
WIDE = Family(WIDE_KERNELS, partial(chunked.cpu_rule, wide=True), partial(chunked.accelerator_rule, wide=True))
"""For log_w down to -20."""


def make_op(family: Family = NARROW) -> Callable[..., tuple[Array, Array]]:
    """Returns the op, see `chunked.make_op`: the kernels of the platform if they support the heads, else `chunked`."""
    return chunked.make_op(lambda rule: partial(_RULES[rule], family), partial(_saved_for_state, family))


def _fitting(family: Family, x: OpInputs) -> dict[str, Rules]:
    """Rules by platform, those of the fallback first."""
    own = {k.platform: k.rules for k in family.kernels if k.supports(x.r.shape[3], x.v.shape[3])}
    return {"default": family.default, **own}


def _by_platform(family: Family, rule: str, x: OpInputs, *args: PyTree) -> PyTree:
    branches = {platform: own(rule) for platform, own in _fitting(family, x).items()}
    return lax.platform_dependent(x, *args, cpu=family.cpu(rule), **branches)


def _forward(family: Family, x: OpInputs, s0: Array) -> tuple[Array, Array]:
    if x.v.shape[1] == 1:
        return decode.forward(x, s0)
    return _by_platform(family, "forward", x, s0)


def _state_backward(family: Family, x: OpInputs, dy: Array, ds: Array) -> Array:
    return _by_platform(family, "state_backward", x, dy, ds)


def _saved_for_state(family: Family, x: OpInputs) -> Choice:
    """Residuals of the gradient of s0 alone."""
    return Choice(x, ((jnp.zeros((0,)), jnp.zeros((0,))),) * len(_fitting(family, x)))


def _forward_saving(family: Family, x: OpInputs, s0: Array) -> tuple[Array, Array, Choice]:
    rules = _fitting(family, x)
    shapes = {platform: jax.eval_shape(own("forward_saving"), x, s0)[2][1:] for platform, own in rules.items()}

    def run(platform: str, function: Rule, x: OpInputs, s0: Array) -> tuple:
        y, s_last, saved = function(x, s0)
        unused = {p: tuple(jnp.zeros_like(s0, z.dtype, z.shape) for z in shape) for p, shape in shapes.items()}
        axes = jax.typeof(s0).manual_axis_type.varying
        used = tuple(varying(z, axes) for z in saved[1:])
        return y, s_last, tuple((unused | {platform: used}).values())

    branches = {platform: partial(run, platform, own("forward_saving")) for platform, own in rules.items()}
    cpu = partial(run, "default", family.cpu("forward_saving"))
    y, s_last, parts = lax.platform_dependent(x, s0, cpu=cpu, **branches)
    return y, s_last, Choice(x, parts)


def _backward(family: Family, choice: Choice, dy: Array, ds: Array) -> tuple[Array, ...]:
    rules = _fitting(family, choice.inputs)

    def run(part: int, function: Rule, choice: Choice, dy: Array, ds: Array) -> tuple[Array, ...]:
        return tuple(function(Saved(choice.inputs, *choice.parts[part]), dy, ds))

    branches = {platform: partial(run, i, own("backward")) for i, (platform, own) in enumerate(rules.items())}
    return lax.platform_dependent(choice, dy, ds, cpu=partial(run, 0, family.cpu("backward")), **branches)


_RULES: dict[str, Rule] = {
    "forward": _forward,
    "forward_saving": _forward_saving,
    "backward": _backward,
    "state_backward": _state_backward,
}

wkv7_auto = make_op()
wkv7_auto_wide = make_op(WIDE)
"""The same for log_w down to -20."""
