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
    """Everything that RWKV-7 remembers between two tokens. All axes fixed, whatever the text length.

    An *unbatched* state (what state tuning trains and state files hold) is the same tuple without the B axis.
    """

    att_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each time mix, in the compute dtype."""
    ffn_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each channel mix, in the compute dtype."""
    wkv: Float[Array, "L *B H V K"]
    """Matrix-valued memory S, always float32, value axis before key axis; or another `rwkv7_jax.wkv_state.Memory`."""


def zero_state(config: RWKV7Config, batch_size: int | None) -> State:
    """The state before any text, for `batch_size` rows; None gives the unbatched state."""
    batch = () if batch_size is None else (batch_size,)
    att_shift, ffn_shift = (jnp.zeros((config.n_layer, *batch, config.n_embd), config.dtype) for _ in range(2))
    wkv = jnp.zeros((config.n_layer, *batch, config.n_head, config.head_size, config.head_size), jnp.float32)
    return State(att_shift, ffn_shift, wkv)
