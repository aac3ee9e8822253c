"""An automaton that finds stop strings token by token on the device, wherever token boundaries fall.

The automaton's states are the beginnings of stop strings (Aho and Corasick 1975); a token moves it by all of its bytes.
"""

from collections.abc import Sequence

import numpy as np

from rwkv7_jax.bucketing import next_power_of_two
from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import end_ids, special_tokens

START, HIT = 0, 1
MIN_STATES = 16
"""Room for states, so that short stop strings share one program."""


def token_table(tokenizer: Tokenizer, vocab_size: int, stops: Sequence[str]) -> np.ndarray:
    """Builds the automaton's table next_state [S, vocab], int16, S a power of two: HIT, once reached, stays.

    Special tokens count as the text that spells them, and a token that ends a text (`end_ids`) is a hit. With a
    tokenizer whose tokens do not join up to bytes no stop string is ever found.

    Raises:
      ValueError: an empty stop string.
    """
    if not all(stops):
        raise ValueError("a stop string is empty; leave it out")
    moves = _byte_moves([stop.encode() for stop in stops])
    size = max(MIN_STATES, next_power_of_two(len(moves)))
    table = np.repeat(np.minimum(np.arange(size), len(moves) - 1)[:, None], vocab_size, axis=1).astype(np.int16)
    table[:, [i for i in end_ids(tokenizer) if i < vocab_size]] = HIT
    if not _joins_bytes(tokenizer):
        return table
    special, ends = special_tokens(tokenizer), end_ids(tokenizer)
    pieces = [tokenizer.decode_bytes([i]) for i in range(min(vocab_size, tokenizer.vocab_size))]
    pieces = [b"" if i in ends else special[i].encode() if i in special else piece for i, piece in enumerate(pieces)]
    lengths = np.asarray([len(piece) for piece in pieces])
    for place in range(max(lengths, default=0)):
        ids = np.flatnonzero(lengths > place)
        byte = np.asarray([pieces[i][place] for i in ids])
        table[:, ids] = moves[table[:, ids], byte[None]]
    return table


def _byte_moves(stops: list[bytes]) -> np.ndarray:
    """Returns next_state [states, 256] after one more byte."""
    beginnings = sorted({stop[:n] for stop in stops for n in range(1, len(stop))})
    numbers = {b"": START} | {text: HIT + 1 + i for i, text in enumerate(beginnings)}
    moves = np.full((len(numbers) + 1, 256), HIT, np.int16)
    for text, state in numbers.items():
        for byte in range(256):
            after = text + bytes([byte])
            if not any(after.endswith(stop) for stop in stops):
                suffixes = (after[i:] for i in range(len(after) + 1))
                moves[state, byte] = next(numbers[suffix] for suffix in suffixes if suffix in numbers)
    return moves


def _joins_bytes(tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode("Question: a b</s>\n<|im_end|> Q")
    return b"".join(tokenizer.decode_bytes([i]) for i in ids) == tokenizer.decode_bytes(ids)
