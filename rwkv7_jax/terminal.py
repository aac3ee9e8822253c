"""The end of a command: one line for a mistake, never a traceback."""

import os
import sys
import warnings
from collections.abc import Callable

LONGEST = 1500
"""Characters of a message."""


def exit_status(body: Callable[[], int], interrupted: str = "") -> int:
    """Runs the body of a command; its warnings are shown as a line each.

    Args:
      body: the command.
      interrupted: text to print after Ctrl-C.

    Returns:
      What `body` returns; 2 after its ValueError or OSError, printed as one line; 130 after Ctrl-C; 0 if the reader of
      standard output, `head` say, has gone.
    """
    as_before = warnings.formatwarning
    warnings.formatwarning = _one_line
    try:
        status = body()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more may be flushed to the reader
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {readable(_reason(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = as_before
    return status


def _reason(error: ValueError | OSError) -> str:
    """The message; of the system's own, the file, if any, and what is wrong, without the number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {readable(str(message))}\n"


def readable(text: str, limit: int = LONGEST) -> str:
    """Returns a text as one line that a terminal shows as it is.

    Args:
      text: with line ends, control characters and marks of direction, maybe from outside.
      limit: characters; of a longer text the beginning and the end are left.

    Returns:
      The line, in which characters that are not printable stand as escapes.
    """
    line = " ".join(text[: 16 * limit].split())
    if not line.isprintable():
        line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    return line if len(line) <= limit else f"{line[: limit * 3 // 4]} ... {line[len(line) - limit // 4 :]}"
