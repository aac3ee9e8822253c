"""Text of chat turns in RWKV's format, in which an empty line ends a turn."""

import re
from collections.abc import Mapping, Sequence

Part = str | Mapping[str, object]
"""Of a message's content: a text, or `{"type": "text", "text": ...}`."""


def turn_text(content: str | Sequence[Part] | None) -> str:
    """Returns the text of one turn, so that it does not end before its end.

    Parts are joined, line ends become those of RWKV, and empty lines are left out.

    Args:
      content: of a message: text, parts of it, or None.

    Returns:
      The text, without blanks at both ends.

    Raises:
      ValueError: a part is not text.

    Example:
      >>> turn_text([{"type": "text", "text": "one\\r\\n\\r\\n"}, {"type": "text", "text": "two"}])
      'one\\ntwo'
    """
    parts = [content] if isinstance(content, str) else content or []
    text = "".join(map(_text, parts))
    return re.sub(r"\n{2,}", "\n", text.replace("\r\n", "\n")).strip()


def _text(part: Part) -> str:
    text = part if isinstance(part, str) else part.get("text")
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else None
        raise ValueError(f"a chat turn has a part of type {kind!r}; only text can be read")
    return text
