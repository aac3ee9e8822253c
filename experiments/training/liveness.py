"""The other processes of a run, watched in the background: whoever is gone ends the run with one line.

An operation over several processes waits for one that is gone, and JAX's runtime ends the waiting with a stack trace.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from jax._src import distributed as runtime

EVERY = 3.0
"""Seconds from one sign of life to the next."""
LOST = 45.0
"""Seconds without one after which a process is taken for dead; less than the runtime's own limit."""
DONE = "done"


class Store(Protocol):
    """The key-value store of the processes."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Sets a value."""
        ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Returns (key, value) of all keys in a folder."""
        ...


class Watch:
    """When each other process was last heard of. own: number of this one; count: of all."""

    def __init__(self, own: int, count: int, now: float):
        self._heard = {other: ("", now) for other in range(count) if other != own}

    def lost(self, signs: Mapping[int, str], now: float) -> list[int]:
        """Notes the signs of life, and returns the processes that gave none for too long."""
        for other, (before, _) in self._heard.items():
            if (sign := signs.get(other, "")) != before:
                self._heard[other] = (sign, now)
        return [other for other, (sign, at) in self._heard.items() if sign != DONE and now - at > LOST]


@contextmanager
def watched(own: int, count: int, lost: Callable[[list[int]], object]) -> Iterator[None]:
    """Gives signs of life and calls `lost` once, in a thread, with the processes that give none."""
    client = runtime.global_state.client
    if count < 2 or client is None:
        yield
        return
    end = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, own, count, lost, end), daemon=True, name="liveness")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(EVERY)


def _watch(client: Store, own: int, count: int, lost: Callable[[list[int]], object], end: threading.Event) -> None:
    watch, beats = Watch(own, count, time.monotonic()), 0
    while True:
        ended = end.wait(EVERY)
        beats += 1
        try:
            client.key_value_set(f"rwkv7/alive/{own}", DONE if ended else str(beats), allow_overwrite=True)
            signs = {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get("rwkv7/alive/")}
        except (RuntimeError, ValueError):  # the store is with process 0, and the runtime hears of its end at once
            return
        if ended:
            return
        if gone := watch.lost(signs, time.monotonic()):
            lost(gone)
            return
