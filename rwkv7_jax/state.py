"""The shape legend of the whole project, and the recurrent state.

    B batch   T time   L layers   D model width   H heads   K key size   V value size   C chunk length

K = V = head size in released models.

Arrays are annotated with jaxtyping, e.g. `Float[Array, "B T H K"]`. A recurrent state is value axis first, `[V, K]`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rwkv7_jax.config import RWKV7Config


class State(NamedTuple):
    """The recurrent state between two tokens; its size does not depend on the text length.

    An *unbatched* state (what state tuning trains and state files hold) is the same tuple without the B axis.
    """

    att_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each time mix, in the compute dtype."""
    ffn_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each channel mix, in the compute dtype."""
    wkv: Float[Array, "L *B H V K"]
    """Matrix-valued state S, always float32, value axis before key axis; or a `rwkv7_jax.wkv_state.WKVState`."""


def zero_state(config: RWKV7Config, batch_size: int | None) -> State:
    """Returns the state before any text.

    Args:
      config: the model's dimensions.
      batch_size: number of rows; None gives the unbatched state.

    Returns:
      Shifts [L, B, D] in the compute dtype and S [L, B, H, V, K] in float32, all zero.

    Example:
      >>> from rwkv7_jax import RWKV7Config, zero_state
      >>> zero_state(RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4), 3).wkv.shape
      (2, 3, 2, 4, 4)
    """
    batch = () if batch_size is None else (batch_size,)
    att_shift, ffn_shift = (
        jnp.zeros((config.n_layer, *batch, config.n_embd), config.activation_dtype) for _ in range(2)
    )
    wkv = jnp.zeros((config.n_layer, *batch, config.n_head, config.head_size, config.head_size), jnp.float32)
    return State(att_shift, ffn_shift, wkv)
