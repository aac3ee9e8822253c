"""How large a tuned state is against the states that the model itself reaches on text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.data import batching
from rwkv7_jax import State, functional, zero_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host
from state_tuning.core.objective import Example

LARGE = 30.0
"""Magnitude of an entry from which on a state is compared at all."""
DOUBTFUL = 100.0
"""Times the size of the model's own states: more than the best rates of sweeps lead to."""
RECORDS = 8


def out_of_scale(lm: LanguageModel, state: State, examples: Sequence[Example]) -> float | None:
    """Returns how many times larger a state is than those that the model reaches, None if it is not out of scale.

    Args:
      lm: the model.
      state: unbatched.
      examples: text; the first few are read.
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(host(state.wkv))]
    if max(np.abs(leaf).max(initial=0.0) for leaf in leaves) < LARGE:
        return None
    _, batch = next(iter(batching.padded(examples[:RECORDS], min(RECORDS, len(examples)))))
    tokens, valid = jnp.asarray(batch["tokens"]), jnp.asarray(batch["valid"])

    def read(params: functional.Params) -> Float[Array, ""]:
        _, last = functional.hidden(lm.model, params, tokens, zero_state(lm.model.config, len(tokens)), valid=valid)
        return jnp.sqrt(jnp.square(last.wkv.astype(jnp.float32)).mean(axis=tuple(range(1, last.wkv.ndim)))).max()

    own = float(jax.jit(read)(lm.params))
    layers = [np.sqrt(np.square(leaf).reshape(len(leaf), -1).mean(axis=1)).max() for leaf in leaves if leaf.ndim]
    ratio = float(max(layers)) / max(own, float(np.finfo(np.float32).tiny))
    return ratio if ratio > DOUBTFUL else None
