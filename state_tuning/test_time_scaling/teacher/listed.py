"""A server's lists of likely tokens, laid onto the student's own tokens by the bytes that both spell.

A list says something of a student's token only where the server cuts the text in the same way: its token begins and
ends with the student's. Of the tokens in the list, those that the student has too keep their probability; all others
are the rest.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import decode_bytes_after
from state_tuning.core.objective import Batch, Example
from state_tuning.objectives.divergences import NONE, Listed
from state_tuning.test_time_scaling.signals import Sampled
from state_tuning.test_time_scaling.teacher import raw_tokens

ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<|end_of_text|>", "<end_of_turn>")
"""How servers show an end token; it is the student's."""

WIDTH = 24
"""K, most tokens of a list, so that all lists are of one shape; the sample's own is one of them."""


class Lists(NamedTuple):
    """The tokens of a sample as a server cuts it, and what it lists for each."""

    tokens: list[str]
    """With the one that the server itself chose after the sample as the last."""
    log_q: list[float]
    """Of each, nats; NaN: the server does not say."""
    likely: list[dict[str, float]]
    """Log-probabilities of the likeliest tokens instead of each."""


def targets(
    tokenizer: Tokenizer,
    samples: Sequence[str],
    examples: Sequence[Example],
    batch: Batch,
    lists: Sequence[Lists | None],
) -> tuple[Listed, Sampled]:
    """Lays lists onto the student's tokens.

    Args:
      tokenizer: the student's.
      samples: their texts.
      examples: the student's tokens, each sample's from `completion_start` on.
      batch: the examples, [R, T].
      lists: what the server says of each sample; None: nothing.

    Returns:
      The lists [R, T, K], and the log-probabilities of the student's tokens [R, T].
    """
    shape = batch["tokens"].shape
    ids, log_q = np.zeros((*shape, WIDTH), np.int32), np.full((*shape, WIDTH), NONE, np.float32)
    known, chosen = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for r, (sample, example, one) in enumerate(zip(samples, examples, lists, strict=True)):
        for place, token, likely in _aligned(tokenizer, sample, example, one) if one else ():
            at = example.completion_start - 1 + place
            known[r, at], chosen[r, at] = 1.0, likely[token]
            listed = sorted(likely.items(), key=lambda pair: (pair[0] != token, -pair[1]))[:WIDTH]
            for k, (id_, value) in enumerate(listed):
                ids[r, at, k], log_q[r, at, k] = id_, value
    return Listed(ids, log_q, known), Sampled(chosen, known)


def _aligned(
    tokenizer: Tokenizer, sample: str, example: Example, lists: Lists
) -> list[tuple[int, int, dict[int, float]]]:
    """(number of a token, the token, log-probabilities of the student's tokens there), where both cut alike."""
    text, own = sample.encode(errors="replace"), example.tokens[example.completion_start :].tolist()
    spelt = _spelling(lists.tokens[:-1], text)
    if spelt is None:
        return []
    starts, at = dict[int, tuple[int, int]](), len(text) - sum(map(len, spelt))
    for i, part in enumerate(spelt):
        starts[at] = (i, at + len(part))
        at += len(part)
    found, at, byte_level = [], 0, spelt != [token.encode(errors="replace") for token in lists.tokens[:-1]]
    for place, token in enumerate(own):
        if token == tokenizer.eos_id:
            likely = _students(tokenizer, lists.likely[-1] | {lists.tokens[-1]: lists.log_q[-1]}, byte_level)
            found += [(place, token, likely)] if at == len(text) and token in likely else []
            break
        part = decode_bytes_after(tokenizer, [token])
        end = at + len(part)
        if text[at:end] != part:
            # A byte outside of any character is U+FFFD in the text: from here on places differ.
            break
        i, theirs = starts.get(at, (-1, -1))
        if theirs == end and not np.isnan(lists.log_q[i]):
            likely = _students(tokenizer, lists.likely[i], byte_level) | {token: lists.log_q[i]}
            found.append((place, token, likely))
        at = end
    return found


def _spelling(tokens: Sequence[str], text: bytes) -> list[bytes] | None:
    """The bytes of each token, whose sum is the end of the text; None if they do not spell it."""
    plain = [raw_tokens.escaped_bytes(token) or token.encode(errors="replace") for token in tokens]
    if text.endswith(b"".join(plain)):
        return plain
    symbols = [raw_tokens.byte_level(token) for token in tokens]
    found = [part for part in symbols if part is not None]
    return found if len(found) == len(tokens) and text.endswith(b"".join(found)) else None


def _students(tokenizer: Tokenizer, likely: dict[str, float], byte_level: bool) -> dict[int, float]:
    """Log-probabilities by the student's token; those of one token are added up."""
    found, known = dict[int, float](), _ids(tokenizer)
    for text, value in likely.items():
        part = raw_tokens.byte_level(text) if byte_level else raw_tokens.escaped_bytes(text)
        token = tokenizer.eos_id if text in ENDS else known.get(text.encode(errors="replace") if part is None else part)
        if token is not None:
            found[token] = float(np.logaddexp(found[token], value)) if token in found else value
    return found


@lru_cache(maxsize=4)
def _ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The student's tokens by their bytes."""
    found = {decode_bytes_after(tokenizer, [i]): i for i in range(tokenizer.vocab_size)}
    return {spelt: i for spelt, i in found.items() if spelt}
