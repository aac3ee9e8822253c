"""How large a tuned state is against the states that the model itself reaches on text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rwkv7_jax import State, zero_state
from rwkv7_jax.inference.packing import PlacedNode
from rwkv7_jax.inference.prefix_tree import ScoredSequence, forest
from rwkv7_jax.inference.scoring import PrefixScorer
from rwkv7_jax.sharding import host
from state_tuning.core.objective import Example

LARGE = 30.0
"""Magnitude of an entry from which on a state is compared at all."""
DOUBTFUL = 100.0
"""Times the size of the model's own states: more than the best rates of sweeps lead to."""
RECORDS = 8


def out_of_scale(scorer: PrefixScorer, state: State, examples: Sequence[Example]) -> float | None:
    """Returns how many times larger a state is than those that the model reaches, None if it is not out of scale.

    Args:
      scorer: of the model; its programs, which benchmarks use too, read the text.
      state: unbatched.
      examples: text; the first few are read.
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(host(state.wkv))]
    if max(np.abs(leaf).max(initial=0.0) for leaf in leaves) < LARGE:
        return None
    own = float(np.sqrt(_reached(scorer, examples[:RECORDS])).max())
    layers = [np.sqrt(np.square(leaf).reshape(len(leaf), -1).mean(axis=1)).max() for leaf in leaves if leaf.ndim]
    ratio = float(max(layers)) / max(own, float(np.finfo(np.float32).tiny))
    return ratio if ratio > DOUBTFUL else None


def _reached(scorer: PrefixScorer, examples: Sequence[Example]) -> Float[np.ndarray, "L"]:
    """Returns the mean squares of each layer's entries in the states after texts."""
    texts = [ScoredSequence(tuple(example.tokens.tolist()), len(example.tokens) - 1) for example in examples]
    found: list[np.ndarray] = []
    roots = [PlacedNode(0, root) for root in forest(texts, scorer.min_saved)]
    for pieces, pool in scorer.visit(roots, [zero_state(scorer.model.config, None)], lambda *_: None):
        ended = [piece.target for piece in pieces for _ in piece.node.ending]
        if ended:
            found += list(host(_mean_squares(pool)).T[ended])
    return np.mean(found, axis=0)


@jax.jit
def _mean_squares(pool: State) -> Float[Array, "L B"]:
    return jnp.square(pool.wkv.astype(jnp.float32)).mean(axis=(2, 3, 4))
