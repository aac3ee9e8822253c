"""JSON objects that carry a CRC-32 of their own content, so that what a disk or a transfer has changed is found."""

import json
import re
import zlib

KEY = "crc32"
"""The first key of a sealed object."""
UNSEALED = re.compile(r'\s*\{\s*"(identity|goodput|name|job|key|index|portion)":')
"""How the files begin that were written before there were checksums."""


def seal(text: str) -> str:
    """Returns the text of a JSON object, of one line or indented, with its checksum as the first key.

    Spaces, line ends and the order of keys do not count, so that other tools may lay the text out anew.

    Raises:
      ValueError: it is not JSON, not an object, or has such a key.

    Example:
      >>> seal('{"loss": 2.5}')
      '{"crc32": "0222b320", "loss": 2.5}'
    """
    value, body = json.loads(text), text[text.index("{") + 1 :] if "{" in text else ""
    if not isinstance(value, dict) or KEY in value:
        raise ValueError(f"an object without the key {KEY!r} is needed")
    space = body[: len(body) - len(body.lstrip())]
    comma = "," if value else ""
    return f'{{{space}"{KEY}": "{_checksum(value)}"{comma}{body if space else " " + body}'


def unseal(text: str | bytes, *, always: bool = False) -> dict[str, object]:
    """Returns the object without its checksum.

    Args:
      text: as `seal` returned it.
      always: whether there has to be a checksum; else an object from before there were any may have none.

    Raises:
      ValueError: in a few words, what is wrong with it.
    """
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        value = json.loads(plain)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if KEY not in value:
        if UNSEALED.match(plain) and not always:
            return value
        raise ValueError("it has no checksum")
    check(value)
    return {name: part for name, part in value.items() if name != KEY}


def check(value: dict[str, object]) -> None:
    """Compares a parsed object with its checksum, if it has one.

    Raises:
      ValueError: they differ.
    """
    if KEY in value and value[KEY] != _checksum({name: part for name, part in value.items() if name != KEY}):
        raise ValueError("it differs from its checksum")


def _checksum(value: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True, separators=(',', ':')).encode()):08x}"
