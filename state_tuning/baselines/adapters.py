"""Baselines that need the frozen weights to become a start: a soft prompt that is read, matrices beside weights.

`Method.graft` knows no weights. It may return an `Adapter` instead of a state, which `AdaptedRWKV7`, the same model,
resolves inside its own call: weights stay an argument of the step, and the train step needs no case for any of this.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rwkv7_jax.functional import Params
from rwkv7_jax.layers import Linear
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State

DOWN, UP = "lora_down", "lora_up"
"""Names of the small matrices [r, in] and [out, r] beside a linear weight [out, in]."""


@runtime_checkable
class Adapter(Protocol):
    """What `AdaptedRWKV7` takes instead of a state."""

    def adapt(self, model: RWKV7, params: Params) -> tuple[Params, State]:
        """Resolves what is trained, differentiable in the adapter's arrays.

        Args:
          model: the model's description, without adapters.
          params: its frozen weights.

        Returns:
          (weights to call the model with, batched state to call it from).
        """
        ...


class AdaptedRWKV7(RWKV7):
    """RWKV-7 that takes an `Adapter` where a state is expected, and adds `up (down x)` where its weights have both."""

    @nn.nowrap
    def apply(self, variables: dict[str, Params], *args: PyTree, **options: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Calls the model as RWKV7 does.

        Args:
          variables: {"params": weights}, with the small matrices of `lora.insert` or without.
          *args: those of RWKV7; the second, the state, may be an `Adapter`.
          **options: those of RWKV7.

        Returns:
          What RWKV7 returns.
        """
        if len(args) > 1 and isinstance(args[1], Adapter):
            params, state = args[1].adapt(RWKV7(self.config), variables["params"])
            variables, args = {"params": params}, (args[0], state, *args[2:])
        with nn.intercept_methods(_add_low_rank):
            return super().apply(variables, *args, **options)


def _add_low_rank(
    next_call: Callable[..., PyTree], args: tuple, options: dict, context: nn.module.InterceptorContext
) -> PyTree:
    """W x, and `up (down x)` beside it where a linear layer has the two."""
    out, layer = next_call(*args, **options), context.module
    if not (isinstance(layer, Linear) and context.method_name == "__call__" and layer.has_variable("params", DOWN)):
        return out
    down, up = (layer.get_variable("params", name).astype(args[0].dtype) for name in (DOWN, UP))
    low: Array = jnp.einsum("...d,rd->...r", args[0], down)
    return out + jnp.einsum("...r,or->...o", low, up)
