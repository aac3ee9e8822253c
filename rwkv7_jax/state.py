"""Making recurrent states."""

import jax.numpy as jnp

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.types import State


def zero_state(config: RWKV7Config, batch_size: int | None) -> State:
    """The state before any text, for `batch_size` rows; None gives the unbatched state."""
    batch = () if batch_size is None else (batch_size,)
    att_shift, ffn_shift = (jnp.zeros((config.n_layer, *batch, config.n_embd), config.dtype) for _ in range(2))
    wkv = jnp.zeros((config.n_layer, *batch, config.n_head, config.head_size, config.head_size), jnp.float32)
    return State(att_shift, ffn_shift, wkv)
