"""The shape legend of the whole project, and the recurrent state.

    B batch   T time   L layers   D model width   H heads   K key size   V value size   C chunk length

K = V = head size in released models.

Arrays are annotated with jaxtyping, e.g. `Float[Array, "B T H K"]`. A recurrent state is value axis first, `[V, K]`.
"""

from typing import NamedTuple

from jaxtyping import Array, Float


class State(NamedTuple):
    """Everything that RWKV-7 remembers between two tokens. All axes fixed, whatever the text length.

    An *unbatched* state (what state tuning trains and state files hold) is the same tuple without the B axis.
    """

    att_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each time mix, in the compute dtype."""
    ffn_shift: Float[Array, "L *B D"]
    """Normalised input of the last valid token to each channel mix, in the compute dtype."""
    wkv: Float[Array, "L *B H V K"]
    """Matrix-valued memory S, always float32, value axis before key axis; or another `rwkv7_jax.memory.Memory`."""
