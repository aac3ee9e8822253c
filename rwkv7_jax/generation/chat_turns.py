"""Text of chat turns in RWKV's format, in which an empty line ends a turn."""

import re
from collections.abc import Mapping, Sequence

Part = str | Mapping[str, object]
"""Of a message's content: a text, or `{"type": "text", "text": ...}`."""

_EMPTY_LINES = re.compile(r"\n{2,}")
_EMPTY_LINES_BEFORE_HEADER = re.compile(r"\n{2,}(?=(?:System|User|Assistant):)")


def turn_text(content: str | Sequence[Part] | None, *, keep_empty_lines: bool = False) -> str:
    """Returns the text of one turn, so that it does not end before its end.

    Parts are joined, line ends become those of RWKV, and empty lines are left out.

    Args:
      content: of a message: text, parts of it, or None.
      keep_empty_lines: leave out those alone that the header of a turn follows.

    Returns:
      The text, without blanks at both ends.

    Raises:
      ValueError: a part is not text.

    Example:
      >>> turn_text([{"type": "text", "text": "one\\r\\n\\r\\n"}, {"type": "text", "text": "two"}])
      'one\\ntwo'
      >>> turn_text("one\\n\\ntwo\\n\\nUser: three", keep_empty_lines=True)
      'one\\n\\ntwo\\nUser: three'
    """
    parts = [content] if isinstance(content, str) else content or []
    text = "".join(map(_text, parts)).replace("\r\n", "\n")
    return (_EMPTY_LINES_BEFORE_HEADER if keep_empty_lines else _EMPTY_LINES).sub("\n", text).strip()


def _text(part: Part) -> str:
    text = part if isinstance(part, str) else part.get("text")
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else None
        raise ValueError(f"a chat turn has a part of type {kind!r}; only text can be read")
    return text
