"""The jitted pass of evaluation: feeds tokens from slots of a pool of states, scores next tokens, keeps the states.

Weights are an argument; one program is compiled for each shape of tokens and number of slots.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax import functional
from rwkv7_jax.finite import not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state

MIN_TARGETS = 4
"""Room for next tokens that are scored after one token."""


class Feed(NamedTuple):
    """What one pass is given."""

    tokens: Int[Array | np.ndarray, "B T"]
    sizes: Int[Array | np.ndarray, "B"]
    """Tokens of each row that count."""
    sources: Int[Array | np.ndarray, "B"]
    """Slots that the rows start from."""
    targets: Int[Array | np.ndarray, "B"]
    """Slots that the states after the rows go to; none, where it lies outside of the pool."""
    asked: Int[Array | np.ndarray, "K"]
    """Places (row * T + column) of the tokens after which something is asked; only the first `count` are read."""
    wanted: Int[Array | np.ndarray, "K N"]
    """Next tokens that are scored there."""
    count: Int[Array | np.ndarray, ""]


class NextTokenScores(NamedTuple):
    """What was asked after tokens."""

    log_probability: Float[Array, "K N"]
    """Of each wanted token, natural, float32."""
    best: Int[Array, "K"]
    """The most likely token."""
    finite: Bool[Array, "K"]
    """Whether all logits are; without that the others say nothing."""


def scores_at_once(places: int) -> int:
    """Returns the number of tokens after which logits exist at a time, in a pass of so many places."""
    return min(places, max(8, places // 8))


@partial(jax.jit, static_argnames="model", donate_argnames="pool")
def advance(model: RWKV7, params: Params, pool: State, feed: Feed) -> tuple[NextTokenScores, State]:
    """Feeds each row's tokens from its slot, and answers what is asked after some of them.

    Args:
      model: the model's description.
      params: its weights.
      pool: states [L, slots, ...]; its memory is written over.
      feed: the tokens.

    Returns:
      (answers, of which the first `feed.count` mean something; the pool with the states after the rows).
    """
    tokens = jnp.asarray(feed.tokens)
    rows, length = tokens.shape
    valid = jnp.arange(length)[None] < jnp.asarray(feed.sizes)[:, None]
    start = jax.tree.map(lambda leaf: jnp.take(leaf, feed.sources, axis=1), pool)
    hidden, after = functional.hidden(model, params, tokens, start, valid=valid)
    pool = jax.tree.map(lambda into, new: into.at[:, feed.targets].set(new, mode="drop"), pool, after)
    flat = hidden.reshape(rows * length, -1)
    size = scores_at_once(rows * length)
    asked, wanted = jnp.asarray(feed.asked), jnp.asarray(feed.wanted)

    def score(block: Int[Array, ""], scores: NextTokenScores) -> NextTokenScores:
        begin = block * size
        x = jnp.take(flat, jax.lax.dynamic_slice_in_dim(asked, begin, size), axis=0)
        logits = functional.logits(model, params, x)
        columns = jax.lax.dynamic_slice_in_dim(wanted, begin, size)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), columns, axis=1)
        found = NextTokenScores(chosen, jnp.argmax(logits, axis=-1).astype(jnp.int32), ~not_finite(logits))
        return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, begin, 0), scores, found)

    count = asked.shape[0]
    blank = NextTokenScores(
        jnp.zeros((count, wanted.shape[1]), jnp.float32), jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    )
    with jax.named_scope("queries"):
        blocks = (jnp.asarray(feed.count) + size - 1) // size
        return jax.lax.fori_loop(0, blocks, score, blank), pool


@partial(jax.jit, static_argnums=(0, 2))
def make_pool(model: RWKV7, states: list[State], slots: int) -> State:
    """Returns a pool [L, slots, ...] with unbatched states in the first slots and zeros in the others.

    Shifts are cast to the compute dtype.
    """
    dtype = zero_state(model.config, None).att_shift.dtype

    def ready(state: State) -> State:
        return state._replace(att_shift=state.att_shift.astype(dtype), ffn_shift=state.ffn_shift.astype(dtype))

    def filled(*leaves: Array) -> Array:
        first = jnp.stack(leaves, axis=1)
        return jnp.pad(first, [(0, 0), (0, slots - len(leaves))] + [(0, 0)] * (first.ndim - 2))

    return jax.tree.map(filled, *map(ready, states))


def group_by_structure(states: list[State]) -> list[list[int]]:
    """Groups the numbers of the states that fit one pool: those of one tree structure and the same shapes."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, state in enumerate(states):
        leaves, tree = jax.tree.flatten(state)
        groups.setdefault((tree, tuple(jnp.shape(leaf) for leaf in leaves)), []).append(number)
    return list(groups.values())
