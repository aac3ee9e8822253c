"""The end of a command: one line for a mistake, never a traceback."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

LONGEST = 1500
"""Characters of a message."""
ENDING = ("SIGTERM", "SIGHUP")
"""Signals that end a process, which tidies up first: temporary files go, locks are released."""


_came: set[int] = set()
"""Numbers of the signals that came while a command ran."""
_told: dict[int, str] = {}
"""What is said after a signal, by its number."""


class Ended(BaseException):
    """One of the signals came; its number is the argument."""


def exit_status(body: Callable[[], int], interrupted: str = "") -> int:
    """Runs the body of a command; its warnings are shown as a line each.

    Args:
      body: the command.
      interrupted: text to print after Ctrl-C.

    Returns:
      What `body` returns; 2 after its ValueError or OSError, printed as one line; 130 after Ctrl-C, 143 after SIGTERM;
      0 if the reader of standard output, `head` say, has gone.
    """
    as_before = warnings.formatwarning
    warnings.formatwarning = _one_line
    _tolerate_narrow_terminals()
    _told[signal.SIGINT] = interrupted or "interrupted"
    try:
        with _tidy_ending():
            status = _unless_swallowed(body)
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
    except Ended as ended:
        print(f"ended by {signal.Signals(ended.args[0]).name}", file=sys.stderr)
        return 128 + ended.args[0]
    finally:
        warnings.formatwarning = as_before
    return status


@contextlib.contextmanager
def _tidy_ending() -> Iterator[None]:
    """Turns signals that would end the process at once into `Ended`, and Ctrl-C into KeyboardInterrupt, within `with`;
    they are raised once more where Python has to pass over them, in callbacks."""
    hook, before = sys.unraisablehook, {}

    def again(told: "sys.UnraisableHookArgs") -> None:
        if not _came or not issubclass(told.exc_type, KeyboardInterrupt | Ended):
            hook(told)
            return
        for number in _came:
            later = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number))
            later.daemon = True
            later.start()

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", *ENDING) if hasattr(signal, name)]
        kept = (signal.SIG_DFL, signal.default_int_handler)
        numbers = [number for number in numbers if signal.getsignal(number) in kept]
        before = {number: signal.signal(number, _end) for number in numbers}
        sys.unraisablehook = again
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        if before:
            _came.clear()


def _end(number: int, frame: FrameType | None) -> None:
    _came.add(number)
    if _imports(frame):  # nothing to tidy up, and libraries turn what is raised there into errors of their own
        print(_told.get(number, f"ended by {signal.Signals(number).name}"), file=sys.stderr, flush=True)
        os._exit(128 + number)
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _unless_swallowed(body: Callable[[], int]) -> int:
    """What `body` returns; a signal that a library under import has turned into its own error ends it all the same."""
    try:
        return body()
    except Exception:
        if not _came:
            raise
        number = min(_came)
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)


def _tolerate_narrow_terminals() -> None:
    """What the terminal's encoding lacks is shown as a question mark."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def typed(option: str, text: str) -> str:
    """Returns a text from the command line, whose bytes are UTF-8 whatever the locale says.

    Raises:
      ValueError: they are not.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{option}: the text is not valid UTF-8") from None


def standard_input(option: str) -> str:
    """Returns all of standard input, which is UTF-8 whatever the locale says.

    Raises:
      ValueError: it is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise ValueError(f"{option} -: standard input is closed")
    raw = getattr(sys.stdin, "buffer", None)
    try:
        text = sys.stdin.read() if raw is None else _lines(raw.read().decode("utf-8-sig"))
        text.encode()
    except UnicodeError:
        raise ValueError(f"{option} -: standard input is not valid UTF-8") from None
    return text


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
