"""The jitted pass of evaluation: feed tokens from forked states, look at some next tokens, keep the states.

Weights are an argument; one program is compiled for each pair of bucketed lengths (tokens, looks).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax import RWKV7, State, zero_state

LOOKS_AT_ONCE = 8
"""Columns of looks whose logits exist at a time."""


class Seen(NamedTuple):
    """What each look found: the target's log-probability (natural, float32) and the most likely token."""

    log_probability: Float[Array, "B K"]
    best: Int[Array, "B K"]


@partial(jax.jit, static_argnames="model")
def advance(
    model: RWKV7,
    params: Any,
    start: State,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    positions: Int[Array, "B K"],
    targets: Int[Array, "B K"],
) -> tuple[Seen, State]:
    """Feed each row's valid tokens from its own state; looks are (position, target) pairs.

    Returns what was seen, and the states [L,B,...] after each row's last valid token.
    """
    apply: Callable[..., Any] = model.apply
    hidden, after = apply({"params": params}, tokens, start, valid=valid, method="hidden")

    def look(column):
        position, target = column
        x = jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]
        logits = apply({"params": params}, x, method="logits")
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)[:, 0]
        return Seen(chosen, jnp.argmax(logits, axis=-1).astype(jnp.int32))

    with jax.named_scope("looks"):
        seen = jax.lax.map(look, (positions.T, targets.T), batch_size=min(LOOKS_AT_ONCE, targets.shape[1]))
    return jax.tree.map(jnp.transpose, seen), after


@jax.jit
def fork(pool: State, rows: Int[Array, "B"]) -> State:
    """Copies [L,B,...] of these rows of a pool of states."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1), pool)


def stack_states(model: RWKV7, states: list[State], rows: int) -> State:
    """Unbatched states as the first rows of a pool [L,rows,...], the last one repeated; shifts in the compute dtype.

    Raises: ValueError for more states than rows.
    """
    if len(states) > rows:
        raise ValueError(f"{len(states)} states do not fit a batch of {rows} rows: raise the batch size")
    dtype = zero_state(model.config, None).att_shift.dtype

    def ready(state: State) -> State:
        att_shift, ffn_shift = (jnp.asarray(shift).astype(dtype) for shift in (state.att_shift, state.ffn_shift))
        return State(att_shift, ffn_shift, jax.tree.map(jnp.asarray, state.wkv))

    filled = [ready(state) for state in [*states, *[states[-1]] * (rows - len(states))]]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *filled)


def kinds(states: list[State]) -> list[list[int]]:
    """Numbers of states that can lie in one pool: those of one tree structure and the same shapes."""
    groups: dict[Any, list[int]] = {}
    for number, state in enumerate(states):
        leaves, tree = jax.tree.flatten(state)
        groups.setdefault((tree, tuple(jnp.shape(leaf) for leaf in leaves)), []).append(number)
    return list(groups.values())
