"""The objective: cross-entropy on completions only, with the prompt and the padding masked.

Where the mask begins. A generation feeds `encode(prompt)` to the model and then predicts token by token, so training
sees exactly that only if prompt and completion are encoded apart and joined as tokens. Encoding the joined text may
merge characters across the boundary into one token (half prompt, half completion): generation from the prompt never
meets that token, and a mask counted in characters or in the prompt's own tokens is then off by one. So `encode_example`
encodes apart, and the mask is a token offset: no merge can move it. `boundary_merges` tells whether a pair is affected
(the usual cause is a prompt that ends in a space: put the space in front of the completion).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax.tokenizer.tokenizers import Tokenizer


class Batch(TypedDict):
    """Right-padded rows. `targets[t]` is the token after `tokens[t]`; padding has valid False and loss_mask 0."""

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    loss_mask: Float[Array | np.ndarray, "B T"]
    valid: Bool[Array | np.ndarray, "B T"]


class Example(NamedTuple):
    """One training sequence: int32 tokens [N], where the completion starts in it, and how many tokens were cut off."""

    tokens: Int[np.ndarray, "N"]
    completion_start: int
    truncated: int


def encode_example(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    max_len: int | None = None,
    *,
    prefix: Sequence[int] = (),
    eos: bool = True,
) -> Example:
    """Tokens of `prefix`, prompt, completion and (if `eos`) the end token, the parts encoded apart (see the module).

    max_len bounds the model's input positions, that is N - 1. Too long an example loses its oldest prompt tokens first
    (one stays, to predict from), then the end of its completion. With no prompt and no prefix the end token, which
    separates documents in RWKV's training text, comes first: the first token needs one to be predicted from.
    Raises: ValueError if nothing is left to predict, or max_len < 1.
    """
    context = [*prefix, *tokenizer.encode(prompt)] or [tokenizer.eos_id]
    answer = [*tokenizer.encode(completion), *([tokenizer.eos_id] if eos else [])]
    if not answer:
        raise ValueError(f"encode_example: the completion {completion!r} has no token to predict")
    if max_len is not None and max_len < 1:
        raise ValueError(f"encode_example: max_len is {max_len}, it must be at least 1")
    total = len(context) + len(answer)
    if max_len is not None and total > max_len + 1:
        context = context[-max(1, max_len + 1 - len(answer)) :]
        answer = answer[: max_len + 1 - len(context)]
    tokens = np.asarray(context + answer, np.int32)
    return Example(tokens, completion_start=len(context), truncated=total - len(tokens))


def boundary_merges(tokenizer: Tokenizer, prompt: str, completion: str) -> bool:
    """Whether encoding prompt and completion jointly gives other tokens than encoding them apart."""
    return tokenizer.encode(prompt + completion) != [*tokenizer.encode(prompt), *tokenizer.encode(completion)]


def collate(examples: Sequence[Example], length: int, batch_size: int | None = None) -> Batch:
    """Right-pad examples to one numpy batch of T = length; with `batch_size`, fill up with rows that are all padding.

    Raises: ValueError for an example of more than length + 1 tokens, no example, or more than batch_size.
    """
    rows = len(examples) if batch_size is None else batch_size
    if not 0 < len(examples) <= rows:
        raise ValueError(f"collate: {len(examples)} examples do not fit a batch of {rows} rows")
    tokens = np.zeros((rows, length), np.int32)
    targets = np.zeros((rows, length), np.int32)
    loss_mask = np.zeros((rows, length), np.float32)
    valid = np.zeros((rows, length), bool)
    for row, example in enumerate(examples):
        n = len(example.tokens) - 1
        if n > length:
            raise ValueError(f"collate: example {row} has {n} positions, more than length {length}; give max_len")
        tokens[row, :n] = example.tokens[:-1]
        targets[row, :n] = example.tokens[1:]
        loss_mask[row, example.completion_start - 1 : n] = 1.0
        valid[row, :n] = True
    return Batch(tokens=tokens, targets=targets, loss_mask=loss_mask, valid=valid)


def token_nll(logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-likelihood of each target in nats, by a float32 log-softmax."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def completion_sums(
    logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"], loss_mask: Float[Array, "B T"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(sum of masked NLL in nats, sum of the mask), one per row; logits where the mask is 0 may be anything, even NaN.

    Sums, not means: over micro-batches they add up to the large batch's exactly (token-weighted).
    """
    logits = jnp.where(loss_mask[..., None] > 0, logits, jnp.zeros((), logits.dtype))
    return (token_nll(logits, targets) * loss_mask).sum(-1), loss_mask.sum(-1)


def completion_loss(
    logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"], loss_mask: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Mean NLL in nats over the masked tokens of the whole batch; 0 if there is none."""
    nll, count = completion_sums(logits, targets, loss_mask)
    return mean(nll.sum(), count.sum())


def mean(total: Float[Array, "*S"], count: Float[Array, ""]) -> Float[Array, "*S"]:
    """total / count, and total where nothing was counted."""
    return total / jnp.where(count > 0, count, 1.0)


def chunked_sums(
    hidden: Float[Array, "B T D"],
    head: Callable[[Float[Array, "B C D"]], Any],
    targets: Int[Array, "B T"],
    loss_mask: Float[Array, "B T"],
    *,
    chunk: int = 128,
    frozen_head: bool = False,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """`completion_sums(head(hidden), ...)` with logits of at most [B, chunk, vocab] alive at a time.

    Each row's masked positions are moved to the front and chunks without one are skipped, so logits are computed only
    where they are needed. The backward pass computes a chunk's logits again (remat). With `frozen_head` it does not:
    the forward pass keeps d nll / d hidden [B, T, D] instead, which saves a third of the head's work; gradients then
    reach `hidden` alone, and the head's weights get none.
    """
    chunk = min(chunk, hidden.shape[1])
    pieces = _compact(hidden, targets, loss_mask, chunk)

    def piece_nll(x, y, m):
        x = jnp.where(m[..., None] > 0, x, jnp.zeros((), x.dtype))
        return completion_sums(head(x), y, m)[0]

    if frozen_head:
        nll = _precomputed(piece_nll, pieces)
    else:
        # The inner remat keeps logits out of the branch's residuals, the outer one a copy of the head for each chunk.
        step = jax.checkpoint(_if_any_counts(jax.checkpoint(piece_nll)))
        zero = jnp.zeros(hidden.shape[0], jnp.float32)
        nll, _ = jax.lax.scan(lambda total, piece: (total + step(*piece), None), zero, pieces)
    return nll, loss_mask.sum(-1)


def _compact(hidden, targets, loss_mask, chunk: int):
    """Masked positions first in each row, then cut into [n, B, chunk, ...] with masked-out padding at the end."""
    order = jnp.argsort(loss_mask <= 0, axis=1, stable=True)
    batch, length = targets.shape
    extra = -length % chunk

    def cut(x):
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    return cut(hidden), cut(targets), cut(loss_mask)


def _if_any_counts(function: Callable) -> Callable:
    """`function(x, y, mask)`, or zeros in its place where no position counts.

    Logits have to stay inside of the branch: what leaves it, residuals too, XLA gathers from all GPUs of a mesh.
    """

    def apply(x, y, m):
        def zeros():
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, x, y, m))

        return jax.lax.cond((m > 0).any(), lambda: function(x, y, m), zeros)

    return apply


def _precomputed(piece_nll: Callable, pieces) -> Float[Array, "B"]:
    """Row sums of `piece_nll` whose gradient to the hidden states was computed in the same pass.

    Rows are independent, so the gradient of the sum over rows holds every row's own gradient.
    """

    def both(x, y, m):
        nll, pull = jax.vjp(lambda x: piece_nll(x, y, m), x)
        return nll, pull(jnp.ones_like(nll))[0]

    x, y, m = pieces
    fixed = jax.lax.stop_gradient(x)
    step = _if_any_counts(both)
    nll, slope = jax.lax.scan(lambda _, piece: (None, step(*piece)), None, (fixed, y, m))[1]
    nll, slope = jax.lax.stop_gradient((nll, slope))
    # value: nll + 0; gradient: slope. 0 * NaN must not enter from padding, hence the where.
    move = jnp.where(m[..., None] > 0, x - fixed, jnp.zeros((), x.dtype))
    return (nll + (slope * move).sum((-2, -1)).astype(jnp.float32)).sum(0)
