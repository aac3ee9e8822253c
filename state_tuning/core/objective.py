"""The objective: cross-entropy on completions only, with the prompt and the padding masked.

`examples` makes the sequences and their masks; its names are here too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rwkv7_jax.sharding import chunks_as_rows
from state_tuning.core.examples import Batch, Example, boundary_merges, collate, encode_example, encode_text

__all__ = [
    "Batch",
    "Example",
    "boundary_merges",
    "chunked_losses",
    "chunked_sums",
    "collate",
    "completion_loss",
    "completion_sums",
    "encode_example",
    "encode_text",
    "token_nll",
]

Head = Callable[[Float[Array, "B C D"]], Float[Array, "B C vocab"]]
"""activations -> logits"""


def token_nll(logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Computes the negative log-likelihood of each target, by a float32 log-softmax.

    Args:
      logits: [B, T, vocab] of any floating dtype.
      targets: token ids [B, T].

    Returns:
      -log softmax(logits)[target] [B, T], nats, float32.

    Example:
      >>> nll = token_nll(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]])), jnp.array([[1]]))  # log 4
      >>> nll.shape, round(float(nll[0, 0]), 4)
      ((1, 1), 1.3863)
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def completion_sums(
    logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"], loss_mask: Float[Array, "B T"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Computes the masked sums of one sequence each.

    Sums, not means: over micro-batches they add up to the large batch's exactly (token-weighted).

    Args:
      logits: [B, T, vocab]; where the mask is 0 they may be anything, even NaN.
      targets: token ids [B, T].
      loss_mask: weight of each token [B, T].

    Returns:
      (sum of masked NLL in nats [B], sum of the mask [B]), float32.

    Example:
      >>> targets, mask = jnp.array([[0, 1, 1]]), jnp.array([[0.0, 1.0, 1.0]])
      >>> nll, count = completion_sums(jnp.zeros((1, 3, 2)), targets, mask)  # two tokens of log 2 each
      >>> round(float(nll[0]), 4), count.tolist()
      (1.3863, [2.0])
    """
    logits = jnp.where(loss_mask[..., None] > 0, logits, jnp.zeros((), logits.dtype))
    return (token_nll(logits, targets) * loss_mask).sum(-1), loss_mask.sum(-1)


def completion_loss(
    logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"], loss_mask: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Computes the mean NLL over the masked tokens of the whole batch.

    Args:
      logits: [B, T, vocab]; where the mask is 0 they may be anything, even NaN.
      targets: token ids [B, T].
      loss_mask: weight of each token [B, T].

    Returns:
      Nats per token, a float32 scalar; 0 if no token is masked in.

    Example:
      >>> loss = completion_loss(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 1]]), jnp.array([[0.0, 1.0, 1.0]]))
      >>> round(float(loss), 4)  # log 2
      0.6931
    """
    nll, count = completion_sums(logits, targets, loss_mask)
    return mean(nll.sum(), count.sum())


def mean(total: Float[Array, "*S"], count: Float[Array, ""]) -> Float[Array, "*S"]:
    """Returns total / count, and total where nothing was counted."""
    return total / jnp.where(count > 0, count, 1.0)


def chunked_sums(
    hidden: Float[Array, "B T D"],
    head: Head,
    targets: Int[Array, "B T"],
    loss_mask: Float[Array, "B T"],
    *,
    chunk: int = 128,
    frozen_head: bool = False,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Computes `completion_sums(head(hidden), ...)` with logits of at most [B, chunk, vocab] alive at a time.

    Each sequence's masked positions are moved to the front and chunks without one are skipped, so logits are computed
    only where they are needed. The backward pass computes a chunk's logits again (remat).

    Args:
      hidden: activations [B, T, D].
      head: activations [B, C, D] -> logits [B, C, vocab].
      targets: token ids [B, T].
      loss_mask: weight of each token [B, T].
      chunk: tokens whose logits exist at a time.
      frozen_head: keep d nll / d hidden [B, T, D] of the forward pass instead of computing logits again, which saves a
        third of the head's work; gradients then reach `hidden` alone, and the head's weights get none.

    Returns:
      (sum of masked NLL in nats [B], sum of the mask [B]).
    """

    def piece_nll(x: Array, y: Array, m: Array) -> Float[Array, "B"]:
        return completion_sums(head(x), y, m)[0]

    nll = chunked_losses(hidden, piece_nll, targets, loss_mask, chunk=chunk, frozen_head=frozen_head)
    return nll, loss_mask.sum(-1)


def chunked_losses(
    hidden: Float[Array, "B T D"],
    loss: Callable[[Array, PyTree, Array], Float[Array, "B"]],
    targets: PyTree,
    mask: Float[Array, "B T"],
    *,
    chunk: int = 128,
    frozen_head: bool = False,
) -> Float[Array, "B"]:
    """Sums a loss of single positions over each sequence, in the chunks of `chunked_sums`.

    Args:
      hidden: activations [B, T, D].
      loss: (activations [B, C, D], targets [B, C, ...], mask [B, C]) -> its sum over each sequence's masked positions.
      targets: leaves [B, T, ...]; no gradient reaches them with `frozen_head`.
      mask: weight of each position [B, T].
      chunk: positions whose logits exist at a time.
      frozen_head: see `chunked_sums`.

    Returns:
      The sums [B].
    """
    (hidden, targets, mask), parts = chunks_as_rows((hidden, targets, mask))
    chunk = min(chunk, hidden.shape[1])
    pieces = _compact(hidden, targets, mask, chunk)

    def piece_loss(x: Array, y: PyTree, m: Array) -> Float[Array, "B"]:
        return loss(jnp.where(m[..., None] > 0, x, jnp.zeros((), x.dtype)), y, m)

    if frozen_head:
        return _of_rows(_precomputed(piece_loss, pieces), parts)
    # The inner remat keeps logits out of the branch's residuals, the outer one a copy of the head for each chunk.
    step = jax.checkpoint(_if_any_counts(jax.checkpoint(piece_loss)))
    zero = jnp.zeros(hidden.shape[0], jnp.float32)
    total = jax.lax.scan(lambda total, piece: (total + step(*piece), None), zero, pieces)[0]
    return _of_rows(total, parts)


def _of_rows(sums: Array, parts: int) -> Float[Array, "B"]:
    """The sums of whole rows from those of their parts, see `chunks_as_rows`."""
    return sums if parts == 1 else sums.reshape(parts, -1).sum(0)


def cut(x: Array | np.ndarray, length: int) -> Array:
    """Cuts [B, T, ...] into pieces [n, B, length, ...], zeros at the end."""
    x = jnp.asarray(x)
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % length)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, length, *x.shape[2:]), 1, 0)


def _compact(hidden: Array, targets: PyTree, loss_mask: Array, chunk: int) -> tuple[Array, PyTree, Array]:
    """Masked positions first in each sequence, then cut into [n, B, chunk, ...] with masked-out padding at the end."""
    order = jnp.argsort(loss_mask <= 0, axis=1, stable=True)

    def sorted_pieces(x: Array) -> Array:
        return cut(jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1), chunk)

    return sorted_pieces(hidden), jax.tree.map(sorted_pieces, targets), sorted_pieces(loss_mask)


def _if_any_counts(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`function(x, y, mask)`, or zeros where no position counts.

    Logits have to stay inside of the branch: what leaves it, residuals too, XLA gathers from all GPUs of a mesh.
    """

    def apply(x: Array, y: PyTree, m: Array) -> PyTree:
        def zeros() -> PyTree:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, x, y, m))

        return jax.lax.cond((m > 0).any(), lambda: function(x, y, m), zeros)

    return apply


def _precomputed(piece_loss: Callable[..., Array], pieces: tuple[Array, PyTree, Array]) -> Float[Array, "B"]:
    """Sums over each sequence of `piece_loss` whose gradient to the hidden states was computed in the same pass.

    Sequences are independent, so the gradient of the sum over them holds every one's own gradient.
    """

    def both(x: Array, y: PyTree, m: Array) -> tuple[Array, Array]:
        nll, pull = jax.vjp(lambda x: piece_loss(x, y, m), x)
        return nll, pull(jnp.ones_like(nll))[0]

    x, y, m = pieces
    fixed = jax.lax.stop_gradient(x)
    step = _if_any_counts(both)
    nll, slope = jax.lax.scan(lambda _, piece: (None, step(*piece)), None, (fixed, y, m))[1]
    nll, slope = jax.lax.stop_gradient((nll, slope))
    # value: nll + 0; gradient: slope. 0 * NaN must not enter from padding, hence the where.
    move = jnp.where(m[..., None] > 0, x - fixed, jnp.zeros((), x.dtype))
    return (nll + (slope * move).sum((-2, -1)).astype(jnp.float32)).sum(0)
