"""Text from the other side of a connection, made fit for a message: quoted, short, and without the API key."""

RUN = 8
"""Characters of the key in a row that are hidden; all of a shorter key."""
HIDDEN = "[key]"


def quoted(text: str | bytes, key: str = "", limit: int = 200) -> str:
    """Returns `text` as `repr` shows it: one line, control and bidirectional characters escaped, cut at `limit`.

    Example:
      >>> quoted("bad key abcdefgh" + chr(0x202E), key="abcdefgh")
      "'bad key [key]\\\\u202e'"
    """
    whole = text.decode(errors="replace") if isinstance(text, bytes) else text
    shown = repr(hidden(" ".join(whole[: 100 * limit].split()), key)[:limit])
    return shown if len(shown) <= limit + 2 else f"{shown[: limit - 2]}...{shown[-1]}"


def hidden(text: str, key: str) -> str:
    """Returns `text` with every run of `RUN` or more characters of the key replaced."""
    width = min(RUN, len(key))
    covered = bytearray(len(text))
    for begin in range(len(key) - width + 1 if key else 0):
        part = key[begin : begin + width]
        at = text.find(part)
        while at >= 0:
            covered[at : at + width] = b"\1" * width
            at = text.find(part, at + 1)
    if not any(covered):
        return text
    return "".join(
        HIDDEN if inside and not before else "" if inside else char
        for char, inside, before in zip(text, covered, b"\0" + bytes(covered), strict=False)
    )
