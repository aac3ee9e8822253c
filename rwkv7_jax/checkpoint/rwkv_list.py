"""States as the package `rwkv` of PyPI keeps them in memory: a list of three arrays a layer."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from rwkv7_jax.checkpoint.files import CheckpointError
from rwkv7_jax.state import State


def to_rwkv_list(state: State) -> list[np.ndarray]:
    """Returns a state as PyPI `rwkv` takes it.

    Args:
      state: an unbatched state, its `wkv` a plain matrix.

    Returns:
      For each layer the att shift [D], S [H, V, K] and the ffn shift [D], float32.
    """
    parts = [np.asarray(part, np.float32) for part in (state.att_shift, state.wkv, state.ffn_shift)]
    return [part[layer] for layer in range(len(parts[1])) for part in parts]


def from_rwkv_list(arrays: Sequence[ArrayLike]) -> State:
    """Returns the state that PyPI `rwkv` holds.

    Args:
      arrays: its list, of numpy arrays or anything that converts, as `to_rwkv_list` returns it.

    Returns:
      The unbatched state, float32.

    Raises:
      CheckpointError: there are not three arrays a layer.
    """
    if not arrays or len(arrays) % 3:
        raise CheckpointError(f"a state list has three arrays a layer, this one has {len(arrays)}; pass the whole list")
    att, wkv, ffn = (np.stack([np.asarray(array, np.float32) for array in arrays[i::3]]) for i in range(3))
    return State(jnp.asarray(att), jnp.asarray(ffn), jnp.asarray(wkv))
