"""Sequences longer than memory ("infctx"): segment by segment, the state carried over, activations of one at a time.

The backward pass runs a segment's forward again from the state before it, so memory holds one segment's activations and
one state a segment. The gradient to the initial state is exact, or truncated: the loss of later segments then counts,
but only through the forward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from state_tuning.core.objective import Batch, cut

Piece = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
"""(state before, Batch of a segment) -> (state after, sums of each sequence)"""


def scan_segments(piece: Piece, state: PyTree, batch: Batch, length: int, exact: int = 0) -> tuple[PyTree, PyTree]:
    """Runs a batch segment by segment.

    Args:
      piece: (state before, batch of a segment) -> (state after, sums of each sequence).
      state: the state before the first token.
      batch: arrays [B, T].
      length: tokens of a segment.
      exact: segments from the start that the gradient runs through; 0 is all of them.

    Returns:
      (state after the last token, sums over segments).
    """
    pieces = jax.tree.map(lambda x: cut(x, length), batch)
    count = jax.tree.leaves(pieces)[0].shape[0]
    exact = min(exact, count) or count
    step = jax.checkpoint(piece)
    state, sums = jax.lax.scan(step, state, jax.tree.map(lambda x: x[:exact], pieces))
    parts = [sums]
    if exact < count:
        state, later = jax.lax.scan(piece, jax.lax.stop_gradient(state), jax.tree.map(lambda x: x[exact:], pieces))
        parts.append(jax.lax.stop_gradient(later))
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves).sum(0, dtype=leaves[0].dtype), *parts)
