"""Gradient accumulation: the sums of a batch by equal parts of its sequences, with the memory of one part."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Sums = Callable[[PyTree, PyTree], tuple[Array, PyTree]]
"""(tree, batch) -> (a scalar sum over the batch, other sums)"""


def accumulated(sums: Sums, tree: PyTree, batch: PyTree, parts: int) -> tuple[tuple[Array, PyTree], PyTree]:
    """Computes sums over a batch, and the gradient of the first, part by part.

    Part i holds the sequences i, i + parts, ..., so that each device of a mesh has sequences of every part.

    Args:
      sums: (tree, batch) -> (a scalar sum over the batch, other sums).
      tree: what is differentiated.
      batch: arrays [B, ...].
      parts: number of parts that are computed one after another.

    Returns:
      ((sum, other sums), gradient of the sum with respect to `tree`).

    Raises:
      ValueError: the sequences cannot be cut into `parts` equal parts.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % parts:
        raise ValueError(f"a batch of {rows} rows cannot be cut into {parts} equal parts; change accumulate")
    one = jax.value_and_grad(sums, has_aux=True)
    if parts == 1:
        return one(tree, batch)
    pieces = jax.tree.map(lambda x: jnp.moveaxis(jnp.reshape(x, (rows // parts, parts, *x.shape[1:])), 1, 0), batch)
    shapes = jax.eval_shape(one, tree, jax.tree.map(lambda x: x[0], pieces))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, one(tree, part)), None), zero, pieces)[0]
