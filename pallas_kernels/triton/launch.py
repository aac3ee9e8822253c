"""WKV-7 through Triton itself and jax-triton: the path to NVIDIA GPUs that outlives Pallas's Triton lowering.

The small and the divided form of `pallas_kernels.gpu` and that for log_w down to -20, with its tuning. Needs the extra
`gpu` (`jax-triton`, which brings `triton`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from pallas_kernels import decode, gpu
from pallas_kernels.chunked import op as chunked
from pallas_kernels.chunked.layout import OpInputs, Saved
from pallas_kernels.gpu.blocks import Schedule
from pallas_kernels.gpu.launch import Launch as PallasLaunch
from pallas_kernels.gpu.tiles import Plan
from pallas_kernels.gpu.tuning import Tuning
from pallas_kernels.support import for_sizes, only_on
from pallas_kernels.triton import divided, wide_launch
from pallas_kernels.triton.call import Constants, call, flags
from pallas_kernels.triton.call import constants as make_constants

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]


class Launch(NamedTuple):
    """The four functions that `chunked.make_op` asks for; `tuning` and `wide` as in `gpu.launch.Launch`."""

    tuning: Tuning | None = None
    wide: bool = False

    def forward(self, x: OpInputs, s0: State) -> tuple[Values, State]:
        """(y, s_T); a single token is a step of decoding."""
        if x.v.shape[1] == 1:
            return decode.forward(x, s0)
        if self.wide:
            return self.strong(x).forward(s0)
        if self.divides("forward", x):
            y, s_last, _ = self.divided(x).forward(s0)
            return y, s_last
        y, s_last, _, _ = self._forward(x, s0, save=False)
        return y, s_last

    def forward_saving(self, x: OpInputs, s0: State) -> tuple[Values, State, Saved]:
        """(y, s_T, what the full backward needs)."""
        if self.wide:
            y, s_last, states, u = self.strong(x).forward_saving(s0)
            return y, s_last, Saved(x, states, u)
        none = jnp.zeros((x.v.shape[0], 0, *x.v.shape[2:]), self.plan(x)[0].numerics.operand)
        if self.divides("forward", x) and self.divides("backward", x):
            y, s_last, states = self.divided(x).forward(s0)
            return y, s_last, Saved(x, states, none)
        y, s_last, states, u = self._forward(x, s0, save=True)
        return y, s_last, Saved(x, states, none if self.divides("backward", x) else u)

    def _forward(self, x: OpInputs, s0: State, save: bool) -> tuple[Array, ...]:
        plan, constants = self.plan(x)
        saved = plan.saved_states * s0.size
        if save and saved >= 1 << 31:
            raise ValueError(
                f"wkv7: implementation 'triton' would save {saved} numbers of states, it addresses fewer than 2^31: "
                "take fewer or shorter sequences, or 'gpu'"
            )
        save_u = save and not self.divides("backward", x)
        states, u = (plan.saved_states, *s0.shape) if save else (1,), x.v.shape if save_u else (1,)
        outputs = (_like(x.v), _like(s0), *(jax.ShapeDtypeStruct(z, plan.numerics.operand) for z in (states, u)))
        return self._call("forward", x, x[:6], (s0,), outputs, constants | {"SAVE": save, "SAVE_U": save_u})

    def backward(self, saved: Saved, dy: Values, ds: State) -> tuple[Array, ...]:
        """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
        x = saved.inputs
        if self.wide:
            return self.strong(x).backward(saved.states, saved.u, dy, ds)
        if self.divides("backward", x):
            return self.divided(x).backward(saved.states, dy, ds)
        plan, constants = self.plan(x)
        parts = [
            jax.ShapeDtypeStruct((plan.blocks, *z.shape), z.dtype if plan.blocks == 1 else jnp.float32) for z in x[:6]
        ]
        parts[3] = _like(x.v)
        given = (saved.states, saved.u, dy, ds)
        *grads, ds = self._call("backward", x, x[:6], given, (*parts, _like(ds)), constants)
        return (
            *(g if i == 3 else g.sum(0).astype(z.dtype) for i, (g, z) in enumerate(zip(grads, x[:6], strict=True))),
            ds,
        )

    def state_backward(self, x: OpInputs, dy: Values, ds: State) -> State:
        """The gradient of s0 alone."""
        if self.wide:
            return self.strong(x).state_backward(dy, ds)
        if self.divides("state_backward", x):
            return self.divided(x).state_backward(dy, ds)
        constants = {n: z for n, z in self.plan(x)[1].items() if n not in ("B", "EVERY")}
        return self._call("state_backward", x, (x.r, x.log_w, x.a, x.b), (dy, ds), (_like(ds),), constants)[0]

    def plan(self, x: OpInputs) -> tuple[Plan, Constants]:
        """Returns sizes as for the Pallas kernels, and as constants of the Triton ones."""
        plan = PallasLaunch(self.tuning).small_plan(x)
        return plan, make_constants(x, plan) | {"EVERY": plan.every}

    def tuned(self, x: OpInputs) -> Tuning:
        """Returns the tuning for these inputs."""
        return PallasLaunch(self.tuning).tuned(x)

    def divides(self, rule: str, x: OpInputs) -> bool:
        """Says whether the kernels of a rule are divided over time, as those of Pallas."""
        return PallasLaunch(self.tuning).form(rule, x) == "divided"

    def divided(self, x: OpInputs) -> divided.Kernels:
        """Returns the passes that are divided over time."""
        plan, tuning = PallasLaunch(self.tuning).divided_plan(x)
        return divided.Kernels(x._replace(log_w=only_on(x.log_w, "cuda", "triton")), plan, tuning)

    def strong(self, x: OpInputs) -> wide_launch.Kernels:
        """Returns the passes for log_w down to -20."""
        plan, tuning, block = PallasLaunch(self.tuning).wide_plan(x)
        return wide_launch.Kernels(x._replace(log_w=only_on(x.log_w, "cuda", "triton")), plan, tuning, block)

    def _call(
        self,
        kernel: str,
        x: OpInputs,
        vectors: tuple[Array, ...],
        given: tuple[Array, ...],
        outputs: tuple[jax.ShapeDtypeStruct, ...],
        constants: Constants,
    ) -> tuple[Array, ...]:
        """Launches the Triton kernel of this name."""
        from pallas_kernels.triton import backward, kernels

        full, tuning = kernel == "backward", self.tuned(x)
        schedule = Schedule(tuning.warps, tuning.stages)
        if full:
            schedule = Schedule(tuning.backward_warps, tuning.backward_stages)
        first = only_on(vectors[0], "cuda", "triton")
        grid = (x.r.shape[2], -(-constants["V"] // constants["VT"]), x.r.shape[0])
        arrays = (first, *vectors[1:], flags(x), *given)
        return call(getattr(backward if full else kernels, kernel), arrays, outputs, grid, schedule, constants)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _rule(name: str, tuning: Tuning | None, wide: bool) -> Callable[..., PyTree]:
    return getattr(Launch(tuning, wide), name)


def make_op(tuning: Tuning | None = None, *, wide: bool = False) -> Callable[..., tuple[Array, Array]]:
    """Makes the op, see `chunked.make_op`. wide: for log_w down to -20.

    Raises (the op):
        ValueError: jax-triton is not installed; heads of a size that has no kernel; when compiled for
            anything but a GPU.
    """
    op = for_sizes(chunked.make_op(partial(_rule, tuning=tuning, wide=wide)), "triton", gpu.supports, gpu.SIZES)

    def checked(*args):
        if message := missing():
            raise ValueError(f"wkv7: implementation 'triton' needs {message}")
        return op(*args)

    return checked


def missing() -> str | None:
    """Returns what to install, in one line, or None."""
    try:
        import jax_triton  # type: ignore[import-not-found]  # noqa: F401
    except Exception as error:  # jax-triton raises whatever its CUDA plugin raises where there is no GPU
        return f"jax-triton and a CUDA plugin (`pip install -e '.[gpu]'`): {' '.join(str(error).split())[:120]}"
    return None


wkv7_triton = make_op()
wkv7_triton_wide = make_op(wide=True)
"""The same for log_w down to -20."""
