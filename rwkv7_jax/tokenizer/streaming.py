"""Text from token ids that arrive piece by piece."""

import codecs
from collections.abc import Iterable, Sequence

from rwkv7_jax.tokenizer.abilities import decode_bytes_after
from rwkv7_jax.tokenizer.protocol import REPLACEMENT, Tokenizer

WINDOW, KEPT, TRIES = 256, 64, 4
"""Ids decoded at once at most; ids that are left before later ones; places tried where what is before may be left out.

A character has at most four bytes, so one of four places lies between characters.
"""


class TextDecoder:
    """Decodes token ids piece by piece; a character whose bytes are incomplete is held back.

    The pieces joined are `tokenizer.decode` of all ids at once (where the tokenizer falls back to bytes: if these are
    UTF-8, since the library spoils a whole run of bytes for one that is not).

    Of a long text the last ids alone are decoded with each new one: what a token stands for depends on few before it.

    Args:
      tokenizer: what decodes.
      after: the ids follow others: a space that begins the text is part of it, which some tokenizers take away from a
        whole text.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: bool = False):
        self._tokenizer, self._after = tokenizer, after
        self._ids: list[int] = []
        self._sent = 0
        """Bytes of the text of `_ids` that were given out."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Adds ids.

        Args:
          ids: the next ones.

        Returns:
          The text that they complete, maybe "".
        """
        self._ids += ids
        data = self._decoded(self._ids)
        end = len(data)
        while data.endswith(REPLACEMENT, 0, end):  # each may stand for a byte of a character
            end -= len(REPLACEMENT)
        piece = self._advance(data, end, final=False)
        if len(self._ids) > WINDOW and end == len(data):  # what is held back may still change the text before it
            self._forget(data)
        return piece

    def finish(self) -> str:
        """Ends the text; returns the rest, with U+FFFD for incomplete characters."""
        data = self._decoded(self._ids)
        return self._advance(data, len(data), final=True)

    def _decoded(self, ids: Sequence[int]) -> bytes:
        return decode_bytes_after(self._tokenizer, ids) if self._after else self._tokenizer.decode_bytes(ids)

    def _advance(self, data: bytes, end: int, *, final: bool) -> str:
        piece = self._utf8.decode(data[self._sent : end], final)
        self._sent = max(self._sent, end)
        return piece

    def _forget(self, data: bytes) -> None:
        """Leaves out the first ids, where the others alone decode to the end of the same text."""
        for kept in range(KEPT, KEPT + TRIES):
            rest = self._decoded(self._ids[-kept:])
            sent = self._sent - (len(data) - len(rest))
            if rest and sent >= 0 and data.endswith(rest):
                self._ids, self._sent = self._ids[-kept:], sent
                return
