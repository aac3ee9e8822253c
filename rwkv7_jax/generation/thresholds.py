"""Which tokens of whole rows top-k and top-p keep.

Thresholds are found by bisection over the bits of a float, exact and many times cheaper than sorting the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def column(numbers: Array | np.ndarray) -> Array | np.ndarray:
    """Returns one number a row as a column beside [B, vocab], and one for all rows as it is."""
    return numbers[:, None] if numbers.ndim else numbers


def keep_top_k(probs: Float[Array, "B vocab"], top_k: Int[Array | np.ndarray, "*R"]) -> Bool[Array, "B vocab"]:
    """Marks the top_k most likely tokens of each row, ties to the lowest ids; all for 0 or more than there are."""
    vocab = probs.shape[-1]
    k = jnp.where((top_k <= 0) | (top_k > vocab), vocab, top_k)
    cut = largest_threshold(probs, lambda chosen: chosen.sum(-1, dtype=jnp.int32) >= k)[:, None]
    above = probs > cut
    tied = (probs == cut).astype(jnp.int32)
    room = column(k) - above.sum(-1, keepdims=True, dtype=jnp.int32)
    return above | ((tied == 1) & (jnp.cumsum(tied, axis=-1) <= room))


def keep_top_p(probs: Float[Array, "B vocab"], top_p: Float[Array | np.ndarray, "*R"]) -> Bool[Array, "B vocab"]:
    """Marks the most likely tokens whose probabilities first reach top_p together, with all ties of the last."""
    cut = largest_threshold(probs, lambda chosen: jnp.where(chosen, probs, 0.0).sum(-1) >= top_p)
    cut = jnp.minimum(jnp.where(top_p < 1, cut, 0.0), probs.max(-1))
    return probs >= cut[:, None]


def largest_threshold(
    probs: Float[Array, "B vocab"], enough: Callable[[Bool[Array, "B vocab"]], Bool[Array, "B"]]
) -> Float[Array, "B"]:
    """Finds the largest t in 0..1 a row for which `enough(probs >= t)` holds; 0 if none does.

    Exact: the bits of floats >= 0 are ordered as the floats are, so 30 halvings of the range of bit patterns give t.
    """

    def halve(
        _: Int[Array, ""], bounds: tuple[Int[Array, "B"], Int[Array, "B"]]
    ) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        good = enough(probs >= threshold[:, None])
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    one_above = int(np.float32(1).view(np.int32)) + 1
    batch = probs.shape[:1]
    low, _ = jax.lax.fori_loop(
        0, one_above.bit_length(), halve, (jnp.zeros(batch, jnp.int32), jnp.full(batch, one_above, jnp.int32))
    )
    return jax.lax.bitcast_convert_type(low, jnp.float32)
