"""Ctrl-C and SIGTERM: finish what is being done, save, say how to go on."""

import signal
import sys
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The user, or the machine's scheduler, asked to stop, and all is saved. The text says at which step."""


class Interrupt:
    """Within `with`, the first signal only sets a flag, looked at by `check`; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.place = "step 0"
        """Where the run stands, for the message."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        print("\nstopping after the present step (once more: at once)", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.asked:
            raise Interrupted(self.place)
