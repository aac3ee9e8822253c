"""What a sample's tokens tell the student: the losses whose gradients move Delta. q is the teacher, pi the student.

    distillation   sum_t D(pi_t, q_t)          the teacher's whole distribution at every token (`divergences`)
    token          - sum_t A_t log pi(c_t),    A_t = log q(c_t) - log pi(c_t) - b: the sampled tokens alone
    reward         - A log pi(c)               one number a sample (`selection.advantages`)

The gradient of `token` is an unbiased estimate of that of `distillation` with the reverse KL: given what precedes c_t,
E[A_t grad log pi(c_t)] = - grad KL(pi_t | q_t). The baseline b is the mean A of the prompt's other samples
(leave-one-out), which does not depend on the sample and so leaves the expectation as it is.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from state_tuning.core import objective
from state_tuning.core.objective import Head
from state_tuning.objectives.divergences import Exact, Kind, Listed, divergence_sums

__all__ = ["Sampled", "losses", "token_advantages"]


@partial(jax.tree_util.register_dataclass, data_fields=("log_q", "known"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Sampled:
    """The teacher's log-probabilities of the sampled tokens alone.

    Example:
      >>> signal = Sampled(log_q=jnp.array([[-0.5], [-1.5]]), known=jnp.ones((2, 1)))  # A is 1 and -1 nat
      >>> logits, tokens, mask = jnp.zeros((2, 1, 4)), jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1))
      >>> settings = {"copies": 2, "chunk": 8, "kind": "reverse", "mixture": 0.5}
      >>> [round(x, 3) for x in losses(logits, lambda x: x, tokens, mask, signal, **settings).tolist()]
      [1.386, -1.386]
    """

    log_q: PyTree
    """[R, T], nats."""
    known: PyTree
    """1 where there is one [R, T], 0 elsewhere."""


Signal = Exact | Listed | Sampled


def losses(
    hidden: Float[Array, "R T D"],
    head: Head,
    targets: Int[Array, "R T"],
    mask: Float[Array, "R T"],
    signal: Signal | None,
    *,
    copies: int,
    chunk: int,
    kind: Kind,
    mixture: float,
) -> Float[Array, "R"]:
    """Computes each sample's loss, summed over its tokens; gradients reach `hidden` alone.

    Args:
      hidden: the student's activations [R, T, D].
      head: activations -> logits.
      targets: the sampled tokens [R, T].
      mask: 1 at the sample's tokens [R, T].
      signal: what the teacher says of each token; None: nothing, the loss is - log pi of the sample.
      copies: samples of each prompt, which stand together.
      chunk: positions whose logits exist at a time.
      kind: divergence of `distillation`.
      mixture: its mixture.

    Returns:
      The losses [R], nats.

    Example:
      >>> logits, tokens, mask = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3))
      >>> settings = {"copies": 2, "chunk": 8, "kind": "reverse", "mixture": 0.5}
      >>> found = losses(logits, lambda x: x, tokens, mask, None, **settings)  # no signal: 3 log 4
      >>> [round(x, 3) for x in found.tolist()]
      [4.159, 4.159]
    """
    if isinstance(signal, Exact | Listed):
        return divergence_sums(hidden, head, signal, mask, kind=kind, mixture=mixture, chunk=chunk)
    if signal is None:
        return objective.chunked_sums(hidden, head, targets, mask, chunk=chunk, frozen_head=True)[0]
    mask = mask * jnp.asarray(signal.known)
    log_pi = token_log_p(jax.lax.stop_gradient(hidden), head, targets, mask, chunk)
    gain = token_advantages(log_pi, jnp.asarray(signal.log_q), mask, copies)

    def weighted(x: Array, y: tuple[Array, Array], m: Array) -> Array:
        chosen, weight = y
        return (objective.token_nll(head(x), chosen) * weight * m).sum(-1)

    return objective.chunked_losses(hidden, weighted, (targets, gain), mask, chunk=chunk, frozen_head=True)


def take(signal: Signal, rows: np.ndarray) -> Signal:
    """Returns a signal of these rows."""
    parts = {field.name: getattr(signal, field.name) for field in dataclasses.fields(signal)}
    kept = {name: part if name in ("model", "params") else part[rows] for name, part in parts.items()}
    return dataclasses.replace(signal, **kept)


def token_log_p(
    hidden: Float[Array, "R T D"], head: Head, targets: Int[Array, "R T"], mask: Float[Array, "R T"], chunk: int
) -> Float[Array, "R T"]:
    """Computes log pi of every sampled token, 0 where the mask is; logits of `chunk` positions are alive at a time."""
    pieces = tuple(objective.cut(x, min(chunk, mask.shape[1])) for x in (hidden, targets, mask))

    def one(piece: tuple[Array, Array, Array]) -> Array:
        x, y, m = piece
        x = jnp.where(m[..., None] > 0, x, jnp.zeros((), x.dtype))
        return -objective.token_nll(head(x), y) * m

    found = jax.lax.map(one, pieces)
    return jnp.moveaxis(found, 0, 1).reshape(mask.shape[0], -1)[:, : mask.shape[1]]


def token_advantages(
    log_pi: Float[Array, "R T"], log_q: Float[Array, "R T"], mask: Float[Array, "R T"], copies: int
) -> Float[Array, "R T"]:
    """Computes A_t = log q - log pi - b at each token, b the mean of the first two over the prompt's other samples.

    Args:
      log_pi: the student's log-probabilities of the sampled tokens, nats.
      log_q: the teacher's, nats.
      mask: 1 at the sample's tokens.
      copies: K, samples of each prompt, which stand together: R = B K.

    Returns:
      The advantages [R, T], nats; 0 where the mask is. With one sample a prompt, b is 0.

    Example:
      >>> log_q = jnp.array([[-1.0, -1.0], [-2.0, -4.0]])
      >>> token_advantages(jnp.full((2, 2), -2.0), log_q, jnp.ones((2, 2)), copies=2).tolist()
      [[2.0, 2.0], [-1.0, -3.0]]
    """
    gain = jnp.where(mask > 0, log_q - log_pi, 0.0)
    total, count = (x.sum(-1).reshape(-1, copies) for x in (gain, mask))
    others = _mean(total.sum(1, keepdims=True) - total, count.sum(1, keepdims=True) - count)
    return jnp.where(mask > 0, gain - others.reshape(-1, 1), 0.0)


def _mean(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), 0.0)
