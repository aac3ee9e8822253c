"""A measured process of its own, and the parent's end of it.

`python -m experiments.bench.worker WHO TASK CHECKPOINT SHAPE` is what the parent starts. Each process imports only what
its task needs: its peak memory is measured.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypedDict

from experiments.bench.inputs import Decode, Timed

BURST, CALLS = 3.0, 4
"""Seconds after which no further call begins, and calls at most."""


class Job(NamedTuple):
    """One measured process: who runs, what it does, and its unit of work in tokens."""

    who: str
    task: str
    tokens: int


class Ready(TypedDict):
    """The first line from a measured process."""

    result: list[float]
    set_up_s: float


class Burst(TypedDict):
    """The line after a burst of calls: the seconds of the best, and the peak memory in bytes."""

    seconds: float
    peak: int


def prepare(who: str, task: str, checkpoint: Path, shape: str) -> Timed:
    """Sets a job up."""
    if task == "state-tuning step":
        from experiments.bench.tuning import tuning

        return tuning(who, checkpoint)
    if who in ("ours", "machine"):
        from experiments.bench import ours

        if who == "machine":
            return ours.bandwidth()
        if task.startswith("decoding"):
            return ours.decoding(Decode.parse(task), checkpoint)
        return ours.importing(checkpoint) if task == "import" else ours.generation(task, checkpoint)
    from experiments.bench import peers

    if task.startswith("decoding"):
        return peers.decoding(who, Decode.parse(task), checkpoint, shape)
    return peers.keras_hub(shape) if who == "keras-hub" else peers.rwkv_pip(task, checkpoint)


def work(who: str, task: str, checkpoint: Path, shape: str) -> None:
    """Runs a measured process: sets up, warms up, then times a burst of calls for every line on stdin."""
    started = time.perf_counter()
    call, result = prepare(who, task, checkpoint, shape)
    if task != "import":
        call()
    _send({"result": result, "set_up_s": time.perf_counter() - started})
    for _ in sys.stdin:
        _send({"seconds": best_call(call), "peak": peak_memory()})


def _send(message: Ready | Burst) -> None:
    print(json.dumps(message), flush=True)


def best_call(call: Callable[[], object]) -> float:
    """Returns the seconds of the fastest call; after others had the machine, the first one finds cold caches."""
    times = []
    while sum(times) < BURST and len(times) < CALLS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far in bytes (Linux).

    `ru_maxrss` would include the parent's.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class Worker:
    """The parent's end of one measured process.

    Raises:
      RuntimeError: the process ended; with its last line of error.
    """

    def __init__(self, job: Job, checkpoint: Path, shape: str):
        command = [sys.executable, "-m", "experiments.bench.worker", job.who, job.task, str(checkpoint), shape]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.seconds, self.peak = float("inf"), 0
        try:
            ready: Ready = json.loads(self.read())
        except RuntimeError:
            self.close()
            raise
        self.result = ready["result"]

    def read(self) -> str:
        """Returns the next JSON line; other output (banners of peers) is passed over.

        Raises:
          RuntimeError: the process ended; with its last line of error.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return line
        assert self.process.stderr is not None
        raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["ended without a message"])[-1])

    def measure(self) -> None:
        """Times a burst of calls; the best of all bursts counts."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found: Burst = json.loads(self.read())
        self.seconds, self.peak = min(self.seconds, found["seconds"]), max(self.peak, found["peak"])

    def close(self) -> None:
        """Ends the process and closes its pipes."""
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
