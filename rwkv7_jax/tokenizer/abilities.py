"""What some tokenizers know beyond the protocol: special tokens, further end tokens, and text that goes on."""

from collections.abc import Mapping, Sequence

from rwkv7_jax.tokenizer.protocol import Tokenizer


def special_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """Returns the ids that decode to nothing, with the text that spells them."""
    return getattr(tokenizer, "special_tokens", {})


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the ids that end a generated text beside `eos_id`."""
    return frozenset(getattr(tokenizer, "end_ids", ()))


def encode_after(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encodes a text that follows another one: without the space that some tokenizers put before a whole text."""
    return getattr(tokenizer, "encode_after", tokenizer.encode)(text)


def decode_bytes_after(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    """Decodes ids that follow others: without taking that space away."""
    return getattr(tokenizer, "decode_bytes_after", tokenizer.decode_bytes)(ids)
