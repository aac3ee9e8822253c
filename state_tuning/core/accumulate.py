"""Gradient accumulation: the sums of a batch by equal parts of its rows, with the memory of one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Sums = Callable[[Any, Any], tuple[Any, Any]]
"""(tree, batch) -> (a scalar sum over the batch, other sums)"""


def accumulated(sums: Sums, tree: Any, batch: Any, parts: int) -> tuple[tuple[Any, Any], Any]:
    """((sum, other sums), gradient of the sum), added up over parts i = rows i, i + parts, ..., so that each device of
    a mesh has rows of every part.

    Raises: ValueError if the rows cannot be cut into `parts` equal parts.
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
