"""What a chat shows: text as it comes, and two answers side by side."""

import re
import shutil
import sys
import unicodedata

NARROW = 60
"""Columns of a terminal below which two answers stand one under the other."""
GAP = " │ "


def shown(text: str) -> str:
    """Returns a model's text without characters that a terminal would obey."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)


def write(text: str) -> None:
    """Prints at once, without a line end."""
    print(shown(text), end="", flush=True)


def say(line: str) -> None:
    """Prints a line of the chat itself."""
    print(shown(line), flush=True)


def progress(text: str) -> None:
    """Replaces the last such line on a terminal; an empty text takes it away."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def beside(titles: tuple[str, str], texts: tuple[str, str], columns: int | None = None) -> str:
    """Returns two texts side by side, each under its title; one under the other on a narrow terminal.

    Args:
      titles: a line each.
      texts: of any length.
      columns: width of the terminal; None: as it says.
    """
    columns = shutil.get_terminal_size().columns if columns is None else columns
    if columns < NARROW:
        return "\n\n".join(f"[{title}]\n{text}" for title, text in zip(titles, texts, strict=True))
    width = (columns - len(GAP)) // 2
    left, right = (
        [_cut(title, width), "─" * width, *wrapped(text, width)] for title, text in zip(titles, texts, strict=True)
    )
    height = max(len(left), len(right))
    left, right = (lines + [""] * (height - len(lines)) for lines in (left, right))
    rows = (f"{one}{' ' * (width - cells(one))}{GAP}{two}" for one, two in zip(left, right, strict=True))
    return "\n".join(row.rstrip() for row in rows)


def wrapped(text: str, width: int) -> list[str]:
    """Returns the lines of a text; those of more than `width` cells are cut at blanks, or at wide characters."""
    return [piece for line in text.expandtabs(4).split("\n") for piece in _broken(line, width)]


def _broken(line: str, width: int) -> list[str]:
    pieces = [""]
    for word in re.findall(r"[^\s\u2e80-\uffff]+|\s+|.", line):
        for part in [word] if cells(word) <= width else list(word):
            if cells(pieces[-1]) + cells(part) > width:
                pieces.append("")
            pieces[-1] += part if pieces[-1] or len(pieces) == 1 else part.lstrip()
    return pieces


def cells(text: str) -> int:
    """Returns how many columns of a terminal a text takes."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(one) in marks else 1 + (unicodedata.east_asian_width(one) in "WF") for one in text
    )


def _cut(text: str, width: int) -> str:
    while cells(text) > width:
        text = text[: max(0, len(text) - 2)] + "…"
    return text
