"""Tokenizers: the World vocabulary, plain bytes and any `tokenizer.json`."""

from rwkv7_jax.tokenizer.tokenizers import (
    ByteTokenizer,
    JsonTokenizer,
    TextDecoder,
    Tokenizer,
    WorldTokenizer,
    load_tokenizer,
)

__all__ = ["ByteTokenizer", "JsonTokenizer", "TextDecoder", "Tokenizer", "WorldTokenizer", "load_tokenizer"]
