"""Encodes texts as scored token sequences, as lm-evaluation-harness does (`TemplateLM._encode_pair`).

One difference: where a token would hold the end of the context and the beginning of the continuation, the harness
counts the context's own tokens in the joint ones, and scores a part of the continuation, or nothing.
"""

from collections.abc import Sequence

import numpy as np

from rwkv7_jax.inference.prefix_tree import ScoredSequence
from rwkv7_jax.tokenizer import Tokenizer, WorldTokenizer
from rwkv7_jax.tokenizer.abilities import encode_after


class Encoder:
    """Encodes texts of which many begin alike.

    A greedy longest-match tokenizer (World) decides each token from at most as many bytes as its longest token has: of
    two texts that begin alike, all tokens are the same that end at least so far before they part. Those are kept.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._data, self._ids, self._ends = b"", [], np.zeros(0, np.int64)
        greedy = isinstance(tokenizer, WorldTokenizer)
        lengths = [len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)] if greedy else []
        self._sizes = np.asarray(lengths, np.int64)

    def encode(self, text: str) -> list[int]:
        """Returns `tokenizer.encode(text)`."""
        if not len(self._sizes):
            return self.tokenizer.encode(text)
        data = text.encode()
        kept = int(np.searchsorted(self._ends, _common(self._data, data) - self._sizes.max(), side="right"))
        start = int(self._ends[kept - 1]) if kept else 0
        rest = self.tokenizer.encode_bytes(data[start:])
        self._data, self._ids = data, self._ids[:kept] + rest
        self._ends = np.concatenate([self._ends[:kept], start + np.cumsum(self._sizes[rest])])
        return list(self._ids)

    def prompt(self, context: str, prefix: Sequence[int] = ()) -> tuple[int, ...]:
        """Returns the tokens of a prompt after the prefix tokens; of an empty one, the end token."""
        return (*prefix, *self.encode(context)) or (self.tokenizer.eos_id,)

    def pair(self, context: str, continuation: str, prefix: Sequence[int] = (), state: int = 0) -> ScoredSequence:
        """Encodes both as one text, scored from where the context's own tokens end.

        Where these are not the beginning of the joint ones, a token would be part context and part continuation; then
        the continuation is encoded alone. White space at the context's end counts as the continuation's. With neither
        prefix nor context the end token, which separates texts in training, comes first.

        Raises:
          ValueError: the continuation has no token of its own.
        """
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        before = self.prompt(context, prefix)
        ids, read = self.encode(context + continuation), before[len(prefix) :] if context else ()
        own = ids[len(read) :] if tuple(ids[: len(read)]) == read else encode_after(self.tokenizer, continuation)
        if not own:
            raise ValueError(f"the continuation {continuation!r} of {context[-40:]!r} has no token of its own")
        return ScoredSequence((*before, *own), len(before), state)


def _common(a: bytes, b: bytes) -> int:
    """Returns the number of bytes in which two texts begin alike."""
    size = min(len(a), len(b))
    differs = np.flatnonzero(np.frombuffer(a, np.uint8, size) != np.frombuffer(b, np.uint8, size))
    return int(differs[0]) if len(differs) else size
