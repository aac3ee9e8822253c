"""Tokenizers: the World vocabulary, plain bytes and any `tokenizer.json`, behind one protocol."""

from rwkv7_jax.tokenizer.bytes import ByteTokenizer
from rwkv7_jax.tokenizer.json import JsonTokenizer
from rwkv7_jax.tokenizer.loading import load_tokenizer
from rwkv7_jax.tokenizer.protocol import Tokenizer
from rwkv7_jax.tokenizer.streaming import TextDecoder
from rwkv7_jax.tokenizer.world import WorldTokenizer

__all__ = ["ByteTokenizer", "JsonTokenizer", "TextDecoder", "Tokenizer", "WorldTokenizer", "load_tokenizer"]
