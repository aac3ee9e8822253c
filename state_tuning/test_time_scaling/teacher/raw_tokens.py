"""Tokens as servers spell them when they do not decode them: byte-level BPE, SentencePiece, escaped bytes, bare ids."""

import re

from rwkv7_jax.tokenizer.json import byte_symbols

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's space."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPED = re.compile(r"bytes:.*\\x[0-9A-Fa-f]{2}.*", re.DOTALL)
_ONE_ESCAPE = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_ID = re.compile(r"token_id:\d+")
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def byte_level(token: str) -> bytes | None:
    """Returns the bytes that a token of a byte-level vocabulary stands for (`Ġ` is a space), None if it is not one."""
    return bytes(_BYTE_OF[char] for char in token) if token and _BYTE_OF.keys() >= set(token) else None


def escaped_bytes(token: str) -> bytes | None:
    r"""Returns the bytes of `<0xE2>` or `bytes:\xe2\x82`, None of any other token."""
    if one := _BYTE.fullmatch(token):
        return bytes([int(one[1], 16)])
    if _ESCAPED.fullmatch(token) is None:
        return None
    begin = token.index(":") + 1
    return _ONE_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), token[begin:].encode(errors="replace"))


def word(token: str) -> str:
    """Returns a token as a word of a text, without the spaces around it, in lower case.

    Example:
      >>> [word(token) for token in (" Yes", "Ġyes", "▁Yes")]
      ['yes', 'yes', 'yes']
    """
    raw = None if token.isascii() else byte_level(token)
    shown = token if raw is None else raw.decode(errors="replace")
    return shown.replace(BLANK, " ").strip().lower()


def is_bare_id(token: str) -> bool:
    """Returns whether a token is shown as its id alone, `token_id:9`."""
    return _ID.fullmatch(token) is not None
