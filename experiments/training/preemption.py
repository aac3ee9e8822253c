"""Ctrl-C, SIGTERM and a scheduler's notice of preemption: finish what is being done, save, say how to go on."""

import signal
import sys
import threading
from types import FrameType, TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config.cli import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Stopped):
    """The user, or the machine's scheduler, asked to stop, and all is saved. The text says at which step."""


class Interrupt:
    """Within `with`, the first signal only sets a flag, looked at by `check`; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.place = "step 0"
        """Where the run stands, for the message."""
        self._before: dict[int, object] = {}
        self._steps = 0

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in SIGNALS if number != signal.SIGTERM or not preemption_service()]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
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

    def agreed(self, exchange: bool = True) -> bool:
        """Returns whether to stop after this step, the same answer in every process; all of them ask once a step.

        One process answers for itself. Several exchange their flags, which waits for the devices; with
        `exchange=False` only JAX's preemption service is heard, which agrees on a step in the background.
        """
        self._steps += 1
        notice = preemption_service() and _notice(self._steps)
        alone = jax.process_count() == 1
        stop = notice or (self.asked if alone else exchange and _any_process(self.asked))
        self.asked = self.asked or stop
        return stop

    def check(self) -> None:
        """Raises `Interrupted` if a signal came."""
        if self.asked:
            raise Interrupted(self.place)


def preemption_service() -> bool:
    """Returns whether JAX listens for SIGTERM and the scheduler's notices: where `jax.distributed` is in use."""
    enabled = jax.config.jax_enable_preemption_service  # pyright: ignore[reportAttributeAccessIssue]
    return bool(jax.distributed.is_initialized() and enabled)


def _notice(step: int) -> bool:
    return multihost_utils.reached_preemption_sync_point(step)


def _any_process(flag: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
