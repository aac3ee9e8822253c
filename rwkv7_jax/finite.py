"""Logits that are not finite, from which no token is chosen."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NONE = -1
"""Stands for the number of a token where all logits are finite."""


class NonFiniteLogitsError(ValueError):
    """A model's logits have NaN or infinite numbers."""


def not_finite(logits: Float[Array, "*B vocab"]) -> Bool[Array, "*B"]:
    """Returns for each row whether one of its logits is NaN or infinite."""
    return ~jnp.isfinite(logits).all(-1)


def check_rows(wrong: Int[np.ndarray, "B"]) -> None:
    """Checks the number of tokens after which each row's logits were not finite, NONE where all were.

    Raises:
      NonFiniteLogitsError: names the first row that has one.
    """
    if len(rows := np.flatnonzero(wrong != NONE)):
        row, count = int(rows[0]), int(wrong[rows[0]])
        raise NonFiniteLogitsError(
            f"the logits of row {row} are not finite after {count} generated tokens: check the weights and the initial "
            "state (`rwkv7 inspect`), or compute in float32"
        )
