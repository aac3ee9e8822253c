"""One token a byte."""

from collections.abc import Sequence

from rwkv7_jax.tokenizer.protocol import REPLACEMENT, checked_ids


class ByteTokenizer:
    """One token a byte, 256 ids. Id 0, the NUL byte, which text does not contain, ends a text.

    Example:
      >>> ByteTokenizer().encode("hi")
      [104, 105]
    """

    vocab_size = 256
    eos_id = 0

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of the text's UTF-8."""
        return list(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """Returns the bytes as ids."""
        return list(data)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Joins the bytes of the ids.

        Raises:
          ValueError: an id is negative.
        """
        return b"".join([bytes([i]) if i < self.vocab_size else REPLACEMENT for i in checked_ids(ids)])
