"""What every tokenizer does: text and bytes to token ids and back."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

REPLACEMENT = "\ufffd".encode()
"""UTF-8 of U+FFFD, which stands for what is not text."""


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a text; `encode` gives it only where a text spells such a token out."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        ...

    def encode_bytes(self, data: bytes) -> list[int]:
        """Returns the ids of bytes."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids; bytes that are not UTF-8 and ids beyond `vocab_size` become U+FFFD."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Returns the bytes of the ids."""
        ...


def checked_ids(ids: Iterable[int]) -> list[int]:
    """Returns the ids as plain numbers.

    Raises:
      ValueError: an id is negative.
    """
    ids = [int(i) for i in ids]
    if ids and min(ids) < 0:
        raise ValueError(f"token id {min(ids)}: ids begin at 0")
    return ids
