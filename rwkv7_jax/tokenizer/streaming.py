"""Text from token ids that arrive piece by piece."""

import codecs
from collections.abc import Iterable

from rwkv7_jax.tokenizer.abilities import decode_bytes_after
from rwkv7_jax.tokenizer.protocol import REPLACEMENT, Tokenizer


class TextDecoder:
    """Decodes token ids piece by piece; a character whose bytes are incomplete is held back.

    The pieces joined are `tokenizer.decode` of all ids at once (where the tokenizer falls back to bytes: if these are
    UTF-8, since the library spoils a whole run of bytes for one that is not). With `after` the ids follow others: a
    space that begins the text is part of it, which some tokenizers take away from a whole text.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: bool = False):
        self._tokenizer, self._after = tokenizer, after
        self._ids: list[int] = []
        self._sent = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Adds ids; returns the text that they complete."""
        self._ids += ids
        data = self._decoded()
        end = len(data)
        while data.endswith(REPLACEMENT, 0, end):  # each may stand for a byte of a character
            end -= len(REPLACEMENT)
        return self._advance(data, end, final=False)

    def finish(self) -> str:
        """Ends the text; returns the rest, with U+FFFD for incomplete characters."""
        data = self._decoded()
        return self._advance(data, len(data), final=True)

    def _decoded(self) -> bytes:
        return (
            decode_bytes_after(self._tokenizer, self._ids) if self._after else self._tokenizer.decode_bytes(self._ids)
        )

    def _advance(self, data: bytes, end: int, *, final: bool) -> str:
        piece = self._utf8.decode(data[self._sent : end], final)
        self._sent = max(self._sent, end)
        return piece
