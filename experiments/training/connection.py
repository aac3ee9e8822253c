"""Several processes find each other, and a process whose others are gone ends with one line.

JAX's runtime ends a process that waits in vain with a stack trace, so that the process ends itself before.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax

from experiments.config.overrides import UsageError
from experiments.config.schema import MeshConfig
from experiments.training import liveness

WAIT = 300.0
"""Seconds in which all processes have to come."""
GRACE = 60
"""Seconds that the runtime waits longer than that."""
HEARTBEAT = 90
"""Seconds without a sign of life after which the runtime takes a process for dead, later than `liveness`."""
GONE = re.compile(r"gloo|connection (closed|reset|refused)|heartbeat|barrier|coordination|UNAVAILABLE|DEADLINE_", re.I)
AGAIN = "start all processes again with the same command: they resume from the newest complete checkpoint"


def connect(config: MeshConfig) -> None:
    """Connects the processes that the settings name, or those of the cluster where they name none.

    Raises:
      UsageError: no connection; if the others do not come, the process ends with one line and status 2.
    """
    initialize = partial(
        jax.distributed.initialize, initialization_timeout=int(WAIT) + GRACE, heartbeat_timeout_seconds=HEARTBEAT
    )
    try:
        with patience(waited_for(config)):
            if config.coordinator is None:
                initialize()
            else:
                initialize(config.coordinator, config.processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the processes did not connect ({' '.join(str(error).split())[:200]})") from None


def waited_for(config: MeshConfig) -> str:
    """Returns who has to come, in words.

    Raises:
      UsageError: the settings are out of range.
    """
    if config.coordinator is None:
        return "the other processes of this cluster"
    count, own = config.processes or 0, config.process_id or 0
    if not re.fullmatch(r".+:\d{1,5}", config.coordinator):
        raise UsageError(f"mesh.coordinator: {config.coordinator!r} is not of the form host:port, as host0:1234")
    if not 0 <= own < count:
        raise UsageError(f"mesh.process_id: {own} is not among 0..{count - 1}, the numbers of {count} processes")
    if own == 0:
        return f"the other {count - 1} processes, here as process 0 of {count} at {config.coordinator}"
    return f"process 0 at {config.coordinator}, and all others of {count}, here as process {own}"


@contextmanager
def patience(others: str) -> Iterator[None]:
    """Says at once who is waited for, and ends the process with one line if they have not come in time."""
    print(f"waiting for {others} ({WAIT:.0f} s at most)", file=sys.stderr, flush=True)
    end = threading.Timer(WAIT, give_up, [f"waited {WAIT:.0f} s for {others}; start all of them in that time"])
    end.daemon = True
    end.start()
    try:
        yield
    finally:
        end.cancel()


@contextmanager
def while_all_live() -> Iterator[None]:
    """Ends the process with one line if another one is gone, or if an operation fails because of that."""
    try:
        with liveness.watched(jax.process_index(), jax.process_count(), _lost):
            yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 and GONE.search(str(error)):
            give_up(f"another process of the run is gone ({' '.join(str(error).split())[:100]}); {AGAIN}")
        raise


def _lost(others: list[int]) -> None:
    names = ", ".join(map(str, others))
    give_up(f"nothing was heard of process {names} for {liveness.LOST:.0f} s: it is gone; {AGAIN}")


def give_up(text: str) -> None:
    """Ends the process at once with one line and status 2, without waiting for others at its end."""
    sys.stdout.flush()
    print(f"error: {text}", file=sys.__stderr__, flush=True)
    os._exit(2)
