"""How far a student's next-token distribution is from a teacher's: in both directions, or mixed; exact, or of a list.

With p the student's and q the teacher's distribution after one prefix:

    reverse   KL(p | q)                                             seeks a mode of q: the student drops what q lacks
    forward   KL(q | p)                                             covers q: the student keeps what q has
    mixed     b KL(q | m) + (1 - b) KL(p | m),  m = b q + (1 - b) p   generalised Jensen-Shannon (arXiv 2306.13649);
                                                                    mixed / b -> forward for b -> 0,
                                                                    mixed / (1 - b) -> reverse for b -> 1

A server lists the K likeliest tokens alone. All others are then one class, the rest, on both sides: the divergence of
K + 1 classes. As merging classes lowers every such divergence, it is a lower bound of the exact one, with equality if
p / q is the same for all tokens of the rest.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from state_tuning.core.objective import Head, chunked_losses

__all__ = ["Exact", "Listed", "divergence", "divergence_sums", "with_rest"]

Kind = Literal["reverse", "forward", "mixed"]
NONE = -1e4
"""log 0 of a place in a list that holds no token; finite, so that gradients are."""
LEAST_REST = 1e-6
"""The rest has at least this probability: lists are rounded, and may add up to more than 1."""


@partial(jax.tree_util.register_dataclass, data_fields=("params", "hidden"), meta_fields=("model",))
@dataclasses.dataclass(frozen=True)
class Exact:
    """The whole distribution at every position, as a model's activations and the head that reads them."""

    model: RWKV7
    """The teacher's description."""
    params: PyTree
    """Its weights, of which the head is used."""
    hidden: PyTree
    """Its activations [R, T, D]."""


@partial(jax.tree_util.register_dataclass, data_fields=("ids", "log_q", "known"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Listed:
    """The likeliest tokens at every position."""

    ids: PyTree
    """Different token ids [R, T, K]; anything where `log_q` is NONE."""
    log_q: PyTree
    """Their log-probabilities [R, T, K], nats; NONE where there is no token."""
    known: PyTree
    """1 where a position has a list [R, T], 0 elsewhere."""


Target = Exact | Listed


def divergence(
    log_p: Float[Array | np.ndarray, "*S V"],
    log_q: Float[Array | np.ndarray, "*S V"],
    kind: Kind = "reverse",
    mixture: float = 0.5,
) -> Float[Array, "*S"]:
    """Computes the divergence of two distributions, see the module.

    Args:
      log_p: the student's log-probabilities over V classes, nats.
      log_q: the teacher's, of the same shape.
      kind: which, see the module.
      mixture: b of `mixed`.

    Returns:
      The divergences, nats.

    Raises:
      ValueError: the kind is unknown.

    Example:
      >>> even, sure = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
      >>> round(float(divergence(even, sure, "reverse")), 3), round(float(divergence(even, sure, "forward")), 3)
      (0.511, 0.368)
    """
    check(kind, mixture)
    if kind == "reverse":
        return _kl(log_p, log_q)
    if kind == "forward":
        return _kl(log_q, log_p)
    log_m = jnp.logaddexp(log_q + np.float32(np.log(mixture)), log_p + np.float32(np.log1p(-mixture)))
    return mixture * _kl(log_q, log_m) + (1 - mixture) * _kl(log_p, log_m)


def check(kind: str, mixture: float) -> None:
    """Checks a kind and its mixture.

    Raises:
      ValueError: in one line.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"divergence {kind!r} is unknown: choose {', '.join(get_args(Kind)[:-1])} or mixed")
    if not 0 < mixture < 1:
        raise ValueError(f"mixture is {mixture}, it must lie between 0 and 1")


def with_rest(
    log_p: Float[Array, "*S V"], ids: Int[Array, "*S K"], log_q: Float[Array, "*S K"]
) -> tuple[Float[Array, "*S K1"], Float[Array, "*S K1"]]:
    """Merges all tokens that are not listed to one class, the last.

    Args:
      log_p: the student's log-probabilities of all tokens, nats.
      ids: the listed tokens.
      log_q: the teacher's log-probabilities of these, NONE where there is none.

    Returns:
      (the student's, the teacher's log-probabilities of K + 1 classes).

    Example:
      >>> log_p = jnp.log(jnp.array([0.5, 0.25, 0.25]))
      >>> mine, theirs = with_rest(log_p, jnp.array([1]), jnp.log(jnp.array([0.75])))
      >>> [round(x, 3) for x in jnp.exp(jnp.stack([mine, theirs])).ravel().tolist()]
      [0.25, 0.75, 0.75, 0.25]
    """
    listed = log_q > NONE / 2
    mine = jnp.where(listed, jnp.take_along_axis(log_p, jnp.where(listed, ids, 0), axis=-1), NONE)
    return _append_rest(mine), _append_rest(jnp.where(listed, log_q, NONE))


def divergence_sums(
    hidden: Float[Array, "R T D"],
    head: Head,
    target: Target,
    mask: Float[Array, "R T"],
    *,
    kind: Kind = "reverse",
    mixture: float = 0.5,
    chunk: int = 128,
    frozen_head: bool = True,
) -> Float[Array, "R"]:
    """Computes sum_t mask_t D(student_t, teacher_t) of each sequence.

    Logits of at most `chunk` positions of both models are alive at a time.

    Args:
      hidden: the student's activations [R, T, D].
      head: the student's activations -> logits.
      target: the teacher's distributions, which get no gradient.
      mask: weight of each position [R, T].
      kind: which divergence.
      mixture: b of `mixed`.
      chunk: positions whose logits exist at a time.
      frozen_head: see `objective.chunked_sums`; gradients then reach `hidden` alone.

    Returns:
      The sums [R], nats.

    Example:
      >>> target = Listed(jnp.array([[[0], [1]]]), jnp.log(jnp.array([[[0.9], [0.9]]])), jnp.ones((1, 2)))
      >>> logits, mask = jnp.zeros((1, 2, 2)), jnp.array([[0.0, 1.0]])  # the student is even, the second token counts
      >>> round(float(divergence_sums(logits, lambda x: x, target, mask, kind="forward")[0]), 3)
      0.368
    """
    sums = partial(chunked_losses, hidden, chunk=chunk, frozen_head=frozen_head)
    measure: Callable[[Array, Array], Array] = partial(divergence, kind=kind, mixture=mixture)
    if isinstance(target, Exact):
        wanted = partial(_exact_logits, target.model, target.params)

        def whole(x: Array, y: Array, m: Array) -> Array:
            y = jnp.where(m[..., None] > 0, y, jnp.zeros((), y.dtype))
            return (measure(jax.nn.log_softmax(head(x)), jax.nn.log_softmax(wanted(y))) * m).sum(-1)

        return sums(loss=whole, targets=jax.lax.stop_gradient(target.hidden), mask=mask)

    def listed(x: Array, y: tuple[Array, Array], m: Array) -> Array:
        return (measure(*with_rest(jax.nn.log_softmax(head(x)), *y)) * m).sum(-1)

    listing = jnp.asarray(target.ids), jnp.asarray(target.log_q)
    return sums(loss=listed, targets=listing, mask=mask * jnp.asarray(target.known))


def counted(target: Target, mask: Float[Array, "R T"]) -> Float[Array, "R T"]:
    """Returns the mask of the positions at which a target says something."""
    return mask * jnp.asarray(target.known) if isinstance(target, Listed) else mask


def _exact_logits(model: RWKV7, params: Params, x: Array) -> Array:
    return functional.logits(model, params, x)


def _append_rest(log_p: Float[Array, "*S K"]) -> Float[Array, "*S K1"]:
    """With log(1 - sum), which is at least log LEAST_REST."""
    inside = jnp.minimum(jax.nn.logsumexp(log_p, axis=-1, keepdims=True), np.float32(np.log1p(-LEAST_REST)))
    return jnp.concatenate([log_p, jnp.log(-jnp.expm1(inside))], axis=-1)


def _kl(log_p: Array | np.ndarray, log_q: Array | np.ndarray) -> Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
