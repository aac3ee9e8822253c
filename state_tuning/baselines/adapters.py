"""Baselines that need the frozen weights to become a start: a soft prompt that is read, matrices beside weights.

`Method.graft` knows no weights. It may return an `Entry` instead of a state, which `Entered`, the same model, resolves
inside its own call: weights stay an argument of the step, and the train step needs no case for any of this.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rwkv7_jax.layers import Linear
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State

DOWN, UP = "lora_down", "lora_up"
"""Names of the small matrices [r, in] and [out, r] beside a linear weight [out, in]."""


@runtime_checkable
class Entry(Protocol):
    """What a model can be called from in the place of a state."""

    def enter(self, model: RWKV7, params: PyTree) -> tuple[PyTree, State]:
        """(weights to call the model with, batched state to call it from), differentiable in the entry's arrays."""
        ...


class Entered(RWKV7):
    """RWKV-7 that takes an `Entry` where a state is expected, and adds `up (down x)` where its weights have the two."""

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """As of RWKV7; the second of `args`, the state, may be an `Entry`."""
        if len(args) > 1 and isinstance(args[1], Entry):
            params, state = args[1].enter(RWKV7(self.config), variables["params"])
            variables, args = {"params": params}, (args[0], state, *args[2:])
        with nn.intercept_methods(_add_low_rank):
            return super().apply(variables, *args, **options)

    def init_stacked(self, key: Any) -> dict:
        """The stacked parameters that there are: Flax compares them with this, and knows no small matrices."""
        if self.has_variable("params", "blocks"):
            return jax.tree.map(jnp.zeros_like, self.get_variable("params", "blocks"))
        return super().init_stacked(key)


def _add_low_rank(next_call: Any, args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
    """W x, and `up (down x)` beside it where a linear layer has the two."""
    out, layer = next_call(*args, **options), context.module
    if not (isinstance(layer, Linear) and context.method_name == "__call__" and layer.has_variable("params", DOWN)):
        return out
    down, up = (layer.get_variable("params", name).astype(layer.dtype) for name in (DOWN, UP))
    low: Array = jnp.einsum("...d,rd->...r", args[0], down)
    return out + jnp.einsum("...r,or->...o", low, up)
