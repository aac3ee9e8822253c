"""Training sequences: texts as token ids, of which the completions alone are predicted, and batches of them.

Where the mask begins. A generation feeds `encode(prompt)` to the model and then predicts token by token, so training
sees exactly that only if prompt and completion are encoded apart and joined as tokens. Encoding the joined text may
merge characters across the boundary into one token (half prompt, half completion): generation from the prompt never
meets that token, and a mask counted in characters or in the prompt's own tokens is then off by one. So `encode_example`
encodes apart, and the mask is a token offset: no merge can move it. `boundary_merges` tells whether a pair is affected
(the usual cause is a prompt that ends in a space: put the space in front of the completion).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import encode_after

BOUNDARY = 64
"""Characters before and after a boundary that may share a token."""


class Batch(TypedDict):
    """Right-padded sequences, a dict of four arrays [B, T]."""

    tokens: Int[Array | np.ndarray, "B T"]
    """What the model reads, int32; 0 in the padding."""
    targets: Int[Array | np.ndarray, "B T"]
    """The token after each of `tokens`, int32."""
    loss_mask: Float[Array | np.ndarray, "B T"]
    """1 where the target is to be predicted, else 0, float32."""
    valid: Bool[Array | np.ndarray, "B T"]
    """False in the padding."""


class Example(NamedTuple):
    """One training sequence."""

    tokens: Int[np.ndarray, "N"]
    """Prompt and completion, int32."""
    completion_start: int
    """The first token that is predicted."""
    truncated: int
    """How many tokens were cut off."""
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

    The `BOUNDARY` characters on both sides of the boundary decide it.

    Args:
      tokenizer: text to token ids.
      prompt: the text before the boundary.
      completion: the text after it.

    Returns:
      True if a token lies across the boundary, so that training and generation would see different tokens.

    Example:
      >>> from rwkv7_jax.tokenizer import ByteTokenizer
      >>> boundary_merges(ByteTokenizer(), "2+2= ", "4")  # a byte never merges with another
      False
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

    Example:
      >>> from rwkv7_jax.tokenizer import ByteTokenizer
      >>> batch = collate([encode_example(ByteTokenizer(), "2+2=", "4")], 6)
      >>> batch["tokens"].tolist(), batch["loss_mask"].tolist()
      ([[50, 43, 50, 61, 52, 0]], [[0.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
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
