"""How long the steps that are left take, and how much memory: one line after the first step without compilation."""

import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import jax


class Device(Protocol):
    """As `jax.Device`."""

    @property
    def process_index(self) -> int:
        """Of the process that it belongs to."""
        ...

    def memory_stats(self) -> Any:
        """Returns bytes by name; None where the device does not tell."""
        ...


class Pace:
    """Times steps between two readings of their metrics, which wait for the device."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.since: tuple[float, int] | None = None
        """When metrics were last read, and after which step; None after a compilation."""
        self.told = False

    def compiled(self) -> None:
        """A step was compiled: the time until its metrics are read says nothing."""
        self.since = None

    def read(self, index: int, steps: int, devices: Iterable[Device]) -> str | None:
        """Returns the line, once, when the metrics of step `index` of `steps` were read.

        Args:
          index: steps taken.
          steps: of the whole run.
          devices: whose memory is looked at.
        """
        now, before = self.clock(), self.since
        if before is None or before[1] != index:
            self.since = now, index
        if self.told or before is None or before[1] >= index or index >= steps:
            return None
        self.told, each, left = True, (now - before[0]) / (index - before[1]), steps - index
        return f"about {duration(left * each)} for the {left} steps left, {each:.2g} s a step; {memory(devices)}"


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it.

    Example:
      >>> duration(80), duration(200), duration(9000)
      ('80 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory(devices: Iterable[Device]) -> str:
    """Says how much memory was in use at most: on the fullest device, or of the process where devices do not tell."""
    stats = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    peaks = [(one["peak_bytes_in_use"], one.get("bytes_limit")) for one in stats if "peak_bytes_in_use" in one]
    if not peaks:
        return f"memory of the process at its peak {_resident() / 2**30:.2f} GiB"
    peak, limit = max(peaks, key=lambda one: one[0])
    of = f" of {limit / 2**30:.2f}" if limit else ""
    return f"memory of the fullest device at its peak {peak / 2**30:.2f}{of} GiB"


def _resident() -> int:
    """Largest resident memory of this process so far in bytes; on Linux without that of its parent."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
