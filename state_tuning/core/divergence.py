"""KL divergence between the next-token distributions of two runs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from state_tuning.core.objective import Head, cut


def kl_sums(
    hidden: Float[Array, "B T D"],
    head: Head,
    other: Float[Array, "B T E"],
    other_head: Head,
    mask: Float[Array, "B T"],
    *,
    chunk: int = 128,
) -> Float[Array, "B"]:
    """Computes sum_t mask_t KL(softmax(head(hidden_t)) | softmax(other_head(other_t))) of each sequence.

    Logits of at most [B, chunk, vocab] of each run are alive at a time: chunks without a masked token are skipped, and
    the backward pass computes a chunk's logits again.

    Args:
      hidden: activations [B, T, D] of the first run; where the mask is 0 they may be anything, even NaN.
      head: activations [B, C, D] -> logits [B, C, vocab].
      other: activations [B, T, E] of the second run.
      other_head: the second run's head.
      mask: weight of each token [B, T].
      chunk: tokens whose logits exist at a time.

    Returns:
      The divergence of each sequence [B], nats.
    """
    chunk = min(chunk, mask.shape[1])

    def piece(x: Array, y: Array, m: Array) -> Array:
        def divergence() -> Array:
            log_p, log_q = jax.nn.log_softmax(head(_clean(x, m))), jax.nn.log_softmax(other_head(_clean(y, m)))
            return (jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1) * m).sum(-1)

        return jax.lax.cond((m > 0).any(), divergence, lambda: jnp.zeros(m.shape[0], jnp.float32))

    step = jax.checkpoint(piece)
    pieces = tuple(cut(x, chunk) for x in (hidden, other, mask))
    zero = jnp.zeros(mask.shape[0], jnp.float32)
    return jax.lax.scan(lambda total, parts: (total + step(*parts), None), zero, pieces)[0]


def _clean(x: Array, mask: Array) -> Array:
    return jnp.where(mask[..., None] > 0, x, jnp.zeros((), x.dtype))
