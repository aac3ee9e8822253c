r"""Escapes in texts that are typed as settings: `--stop '\n'` is a line end."""

import re

KNOWN = r"\n \t \r \\ \xHH \uHHHH \UHHHHHHHH"
_ESCAPE = re.compile(r"\\(?:([ntr\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""The text with the escapes of `KNOWN` replaced by what they stand for; any other backslash stays.

    Raises:
      ValueError: a number that is not a character.

    Example:
      >>> unescape(r"a\tb\\n \alpha")
      'a\tb\\n \\alpha'
    """

    def character(match: re.Match[str]) -> str:
        if match[1]:
            return _LETTERS[match[1]]
        number = int(match[2] or match[3] or match[4], 16)
        if number > 0x10FFFF:
            raise ValueError(f"{match[0]} is not a character")
        return chr(number)

    found = _ESCAPE.sub(character, text)
    if found == text:
        return text
    try:
        return found.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half of a surrogate pair is not a character") from None
