"""What the user types: turns of one line or several, from a terminal or a pipe."""

import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

from rwkv7_jax.terminal import typed

PROMPT, MORE, QUOTES = "> ", ". ", '"""'
WRONG = "a line is not valid UTF-8 and was left out"


class UnreadableLine(ValueError):
    """A line that is not UTF-8."""


def from_terminal(completions: Sequence[str]) -> Callable[[str], str]:
    """Returns a function that asks for a line, with the keys and the history of readline where that is available."""
    try:
        import readline
    except ImportError:
        return input
    words = sorted(completions)

    def complete(text: str, index: int) -> str | None:
        return ([word for word in words if word.startswith(text)] + [None])[index]

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    return input


def from_pipe(stream: BinaryIO, show: Callable[[str], None]) -> Callable[[str], str]:
    """Returns a function that reads a line of UTF-8 and shows it behind its prompt, as a terminal would.

    Raises:
      EOFError: there are no more.
      UnreadableLine: a line is not UTF-8.
    """

    def read(prompt: str) -> str:
        data = stream.readline()
        if not data:
            raise EOFError
        try:
            line = data.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UnreadableLine(WRONG) from None
        show(f"{prompt}{line}")
        return line

    return read


def standard_input(completions: Sequence[str], show: Callable[[str], None]) -> tuple[Callable[[str], str], bool]:
    """Returns (a function that asks for a line, whether a terminal answers it).

    Raises:
      ValueError: standard input is closed.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed; a chat reads its lines there")
    if sys.stdin.isatty():
        return from_terminal(completions), True
    return from_pipe(sys.stdin.buffer, show), False


def turn(ask: Callable[[str], str]) -> str:
    """Returns what is typed next: a line, lines that a backslash at the end joins, or the lines between three quotes.

    Raises:
      EOFError: the input has ended.
      UnreadableLine: a line is not UTF-8.
    """
    line = _checked(ask(PROMPT))
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip().removeprefix(QUOTES), ask)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_checked(ask(MORE)))
    return "\n".join(lines)


def _quoted(first: str, ask: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(_checked(ask(MORE)))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _checked(line: str) -> str:
    try:
        return typed("a line", line)
    except ValueError:
        raise UnreadableLine(WRONG) from None
