"""Tables as text and as Markdown: the first line is the header."""

from collections.abc import Sequence

Line = Sequence[object]
"""The cells of one line, written by `str`."""


def text_table(lines: Sequence[Line]) -> str:
    """Returns lines in aligned columns, a rule under the header.

    Example:
      >>> print(text_table([["task", "records"], ["arc", 20]]))
      task  records
      -------------
      arc   20
    """
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def markdown_line(cells: Line) -> str:
    """Returns one line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown_table(lines: Sequence[Line], align: str = "") -> str:
    """Returns lines as a Markdown table.

    Args:
      lines: the header, then the lines of the table, all of one length.
      align: a letter a column, "r" for numbers at the right; "": no alignment.

    Example:
      >>> print(markdown_table([["task", "records"], ["arc", 20]], "lr"))
      | task | records |
      |---|---:|
      | arc | 20 |
    """
    rules = ["---:" if letter == "r" else "---" for letter in align or "l" * len(lines[0])]
    return "\n".join([markdown_line(lines[0]), "|" + "|".join(rules) + "|", *map(markdown_line, lines[1:])])
