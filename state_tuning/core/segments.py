"""Sequences longer than memory ("infctx"): segment by segment, the state carried over, activations of one at a time.

The backward pass runs a segment's forward again from the state before it, so memory holds one segment's activations and
one state a segment. The gradient to the initial state is exact, or truncated: the loss of later segments then counts,
but only through the forward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from state_tuning.core.objective import Batch

Piece = Callable[[Any, Any], tuple[Any, Any]]
"""(state before, Batch of a segment) -> (state after, per-row sums)"""


def scan_segments(piece: Piece, state: Any, batch: Batch, length: int, exact: int = 0) -> tuple[Any, Any]:
    """(state after the last token, sums over segments) of a batch cut into segments of `length` tokens.

    exact: segments from the start that the gradient runs through; 0 is all of them.
    """
    pieces = jax.tree.map(lambda x: _cut(x, length), batch)
    count = jax.tree.leaves(pieces)[0].shape[0]
    exact = min(exact, count) or count
    step = jax.checkpoint(piece)
    state, sums = jax.lax.scan(step, state, jax.tree.map(lambda x: x[:exact], pieces))
    parts = [sums]
    if exact < count:
        state, later = jax.lax.scan(piece, jax.lax.stop_gradient(state), jax.tree.map(lambda x: x[exact:], pieces))
        parts.append(jax.lax.stop_gradient(later))
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves).sum(0, dtype=leaves[0].dtype), *parts)


def _cut(x: Any, length: int) -> Any:
    """[B, T] -> [segments, B, length], zeros (no token) at the end."""
    x = jnp.pad(jnp.asarray(x), ((0, 0), (0, -x.shape[1] % length)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, length), 1, 0)
