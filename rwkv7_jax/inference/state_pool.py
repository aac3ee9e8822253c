"""The jitted pass of evaluation: feeds tokens from forked states, scores some next tokens, keeps the states.

Weights are an argument; one program is compiled for each pair of bucketed lengths (tokens, queries).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax import functional
from rwkv7_jax.finite import not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state

QUERIES_AT_ONCE = 8
"""Columns of queries whose logits exist at a time."""


class NextTokenScores(NamedTuple):
    """Answers to queries: the target's log-probability (natural, float32) and the most likely token."""

    log_probability: Float[Array, "B K"]
    best: Int[Array, "B K"]
    finite: Bool[Array, "B K"]
    """Whether all logits are; without that the other two say nothing."""


@partial(jax.jit, static_argnames="model")
def advance(
    model: RWKV7,
    params: Params,
    start: State,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    positions: Int[Array, "B K"],
    targets: Int[Array, "B K"],
) -> tuple[NextTokenScores, State]:
    """Feeds each row's valid tokens from its own state, and answers its queries, (position, target) pairs.

    Returns:
      (answers [B, K], states [L, B, ...] after each row's last valid token).
    """
    hidden, after = functional.hidden(model, params, tokens, start, valid=valid)

    def score(column: tuple[Int[Array, "B"], Int[Array, "B"]]) -> NextTokenScores:
        position, target = column
        x = jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]
        logits = functional.logits(model, params, x)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)[:, 0]
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return NextTokenScores(chosen, best, ~not_finite(logits))

    with jax.named_scope("queries"):
        scores = jax.lax.map(score, (positions.T, targets.T), batch_size=min(QUERIES_AT_ONCE, targets.shape[1]))
    return jax.tree.map(jnp.transpose, scores), after


@jax.jit
def fork(pool: State, rows: Int[Array, "B"]) -> State:
    """Returns copies [L, B, ...] of these rows of a pool of states."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1), pool)


def stack_states(model: RWKV7, states: list[State], rows: int) -> State:
    """Stacks unbatched states as the first rows of a pool [L, rows, ...], the last one repeated.

    Shifts are cast to the compute dtype.

    Raises:
      ValueError: more states than rows.
    """
    if len(states) > rows:
        raise ValueError(f"{len(states)} states do not fit a batch of {rows} rows: raise the batch size")
    dtype = zero_state(model.config, None).att_shift.dtype

    def ready(state: State) -> State:
        att_shift, ffn_shift = (jnp.asarray(shift).astype(dtype) for shift in (state.att_shift, state.ffn_shift))
        return State(att_shift, ffn_shift, jax.tree.map(jnp.asarray, state.wkv))

    filled = [ready(state) for state in [*states, *[states[-1]] * (rows - len(states))]]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *filled)


def group_by_structure(states: list[State]) -> list[list[int]]:
    """Groups the numbers of the states that fit one pool: those of one tree structure and the same shapes."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, state in enumerate(states):
        leaves, tree = jax.tree.flatten(state)
        groups.setdefault((tree, tuple(jnp.shape(leaf) for leaf in leaves)), []).append(number)
    return list(groups.values())
