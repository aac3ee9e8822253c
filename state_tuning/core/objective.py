"""The objective: cross-entropy on completions only, with the prompt and the padding masked.

Where the mask begins. A generation feeds `encode(prompt)` to the model and then predicts token by token, so training
sees exactly that only if prompt and completion are encoded apart and joined as tokens. Encoding the joined text may
merge characters across the boundary into one token (half prompt, half completion): generation from the prompt never
meets that token, and a mask counted in characters or in the prompt's own tokens is then off by one. So `encode_example`
encodes apart, and the mask is a token offset: no merge can move it. `boundary_merges` tells whether a pair is affected
(the usual cause is a prompt that ends in a space: put the space in front of the completion).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rwkv7_jax.sharding import chunks_as_rows
from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import encode_after

Head = Callable[[Float[Array, "B C D"]], Float[Array, "B C vocab"]]
"""activations -> logits"""
BOUNDARY = 64
"""Characters before and after a boundary that may share a token."""


class Batch(TypedDict):
    """Right-padded sequences. `targets[t]` is the token after `tokens[t]`; padding has valid False and loss_mask 0."""

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    loss_mask: Float[Array | np.ndarray, "B T"]
    valid: Bool[Array | np.ndarray, "B T"]


class Example(NamedTuple):
    """One training sequence: int32 tokens [N], where the completion starts in it, and how many tokens were cut off."""

    tokens: Int[np.ndarray, "N"]
    completion_start: int
    truncated: int
    learnt: Bool[np.ndarray, "N"] | None = None
    """Which tokens are predicted; None: all from `completion_start` on."""


def encode_example(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    max_len: int | None = None,
    *,
    prefix: Sequence[int] = (),
    eos: bool = True,
    follows: bool = False,
) -> Example:
    """Encodes `prefix`, prompt, completion and (if `eos`) the end token, the parts apart (see the module).

    With no prompt and no prefix the end token, which separates documents in RWKV's training text, comes first: the
    first token needs one to be predicted from.

    Args:
      tokenizer: text to token ids.
      prompt: text before the completion; it has no loss.
      completion: text to predict.
      max_len: bound of the model's input positions, that is N - 1. Too long an example loses its oldest prompt tokens
        first (a quarter of `max_len` stays), then the end of its completion.
      prefix: token ids before the prompt.
      eos: whether the end token is predicted after the completion.
      follows: whether the prompt itself follows other text, as a later part of a conversation does.

    Returns:
      The example, int32.

    Raises:
      ValueError: nothing is left to predict, or max_len < 1.

    Example:
      >>> from rwkv7_jax.tokenizer import ByteTokenizer
      >>> example = encode_example(ByteTokenizer(), "2+2=", "4")
      >>> example.tokens.tolist(), example.completion_start
      ([50, 43, 50, 61, 52, 0], 4)
    """
    given = encode_after(tokenizer, prompt) if follows else tokenizer.encode(prompt)
    context = [*prefix, *given] or [tokenizer.eos_id]
    said = encode_after(tokenizer, completion) if given or follows else tokenizer.encode(completion)
    answer = [*said, *([tokenizer.eos_id] if eos else [])]
    if not answer:
        raise ValueError(f"encode_example: the completion {completion!r} has no token to predict")
    if max_len is not None and max_len < 1:
        raise ValueError(f"encode_example: max_len is {max_len}, it must be at least 1")
    total = len(context) + len(answer)
    if max_len is not None and total > max_len + 1:
        context = context[-max(1, max_len // 4, max_len + 1 - len(answer)) :]
        answer = answer[: max_len + 1 - len(context)]
    tokens = np.asarray(context + answer, np.int32)
    return Example(tokens, completion_start=len(context), truncated=total - len(tokens))


def encode_text(tokenizer: Tokenizer, text: str, max_len: int) -> list[Example]:
    """Encodes a plain text as windows of at most `max_len` positions, each of which starts with the end token.

    Args:
      tokenizer: text to token ids.
      text: every token of it, and the end token after it, is predicted.
      max_len: bound of the model's input positions.

    Returns:
      The windows in order.

    Raises:
      ValueError: the text is empty and has nothing to predict.

    Example:
      >>> from rwkv7_jax.tokenizer import ByteTokenizer
      >>> [example.tokens.tolist() for example in encode_text(ByteTokenizer(), "abc", 3)]
      [[0, 97, 98, 99], [0, 0]]
    """
    whole = encode_example(tokenizer, "", text)
    start = whole.completion_start
    head, body = whole.tokens[:start], whole.tokens[start:]
    size = max(1, max_len + 1 - start)
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return [Example(np.concatenate([head, piece]), start, 0) for piece in pieces]


def boundary_merges(tokenizer: Tokenizer, prompt: str, completion: str) -> bool:
    """Returns whether encoding prompt and completion jointly gives other tokens than encoding them apart.

    The characters on both sides of the boundary decide it.
    """
    before, after = prompt[-BOUNDARY:], completion[:BOUNDARY]
    return tokenizer.encode(before + after) != [*tokenizer.encode(before), *encode_after(tokenizer, after)]


def collate(examples: Sequence[Example], length: int, batch_size: int | None = None) -> Batch:
    """Right-pads examples to one numpy batch.

    Args:
      examples: at least one.
      length: T, positions of each sequence.
      batch_size: B; sequences that are all padding fill it up. None: the number of examples.

    Returns:
      The batch [B, T].

    Raises:
      ValueError: an example has more than length + 1 tokens; there is no example, or more than batch_size.
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
        if example.learnt is not None:
            loss_mask[row, :n] = example.learnt[1:]
        valid[row, :n] = True
    return Batch(tokens=tokens, targets=targets, loss_mask=loss_mask, valid=valid)


def token_nll(logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Computes the negative log-likelihood of each target in nats, by a float32 log-softmax."""
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
      (sum of masked NLL in nats [B], sum of the mask [B]).
    """
    logits = jnp.where(loss_mask[..., None] > 0, logits, jnp.zeros((), logits.dtype))
    return (token_nll(logits, targets) * loss_mask).sum(-1), loss_mask.sum(-1)


def completion_loss(
    logits: Float[Array, "B T vocab"], targets: Int[Array, "B T"], loss_mask: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Computes the mean NLL in nats over the masked tokens of the whole batch; 0 if there is none."""
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
