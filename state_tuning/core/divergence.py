"""KL divergence between the next-token distributions of two runs, and the guarded update that fits one to the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from state_tuning.core import non_finite
from state_tuning.core.train import TuneState

Head = Callable[[Float[Array, "B C D"]], Any]


def kl_sums(
    hidden: Float[Array, "B T D"],
    head: Head,
    other: Float[Array, "B T E"],
    other_head: Head,
    mask: Float[Array, "B T"],
    *,
    chunk: int = 128,
) -> Float[Array, "B"]:
    """sum_t mask_t KL(softmax(head(hidden_t)) | softmax(other_head(other_t))) of each row, in nats.

    Logits of at most [B, chunk, vocab] of each run are alive at a time: chunks without a masked token are skipped, and
    the backward pass computes a chunk's logits again. Hidden values where the mask is 0 may be anything, even NaN.
    """
    chunk = min(chunk, mask.shape[1])

    def piece(x: Array, y: Array, m: Array) -> Array:
        def divergence() -> Array:
            log_p, log_q = jax.nn.log_softmax(head(_clean(x, m))), jax.nn.log_softmax(other_head(_clean(y, m)))
            return (jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1) * m).sum(-1)

        return jax.lax.cond((m > 0).any(), divergence, lambda: jnp.zeros(m.shape[0], jnp.float32))

    step = jax.checkpoint(piece)
    pieces = tuple(_cut(x, chunk) for x in (hidden, other, mask))
    zero = jnp.zeros(mask.shape[0], jnp.float32)
    return jax.lax.scan(lambda total, parts: (total + step(*parts), None), zero, pieces)[0]


def apply_gradients(
    optimizer: optax.GradientTransformation, tuned: TuneState, loss: Float[Array, ""], grads: PyTree
) -> tuple[TuneState, dict[str, Array]]:
    """One step of `optimizer`; a non-finite loss, gradient or result leaves trainable and optimiser as they were.

    metrics: loss, grad_norm, applied, skipped, consecutive.
    """
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, tuned.opt_state, tuned.trainable)
        candidate = optax.apply_updates(tuned.trainable, updates)
    ok = non_finite.all_finite((loss, grads, candidate, opt_state))
    skipped = tuned.skipped + (~ok).astype(jnp.int32)
    consecutive = jnp.where(ok, 0, tuned.consecutive + 1)
    trainable, opt_state = non_finite.select(ok, (candidate, opt_state), (tuned.trainable, tuned.opt_state))
    norm = optax.tree.norm(grads)
    metrics = {"loss": loss, "grad_norm": norm, "applied": ok, "skipped": skipped, "consecutive": consecutive}
    return TuneState(trainable, opt_state, tuned.step + 1, skipped, consecutive), metrics


def _clean(x: Array, mask: Array) -> Array:
    return jnp.where(mask[..., None] > 0, x, jnp.zeros((), x.dtype))


def _cut(x: Array, chunk: int) -> Array:
    """[B, T, ...] -> [n, B, chunk, ...], zeros at the end."""
    batch, time = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -time % chunk)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)
