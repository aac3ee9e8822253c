"""A measured process of its own, and the parent's end of it.

`python -m experiments.bench.worker WHO TASK DTYPE ROWS CHECKPOINT SHAPE` is what the parent starts. Each process
imports only what its task needs: its peak memory is measured.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypedDict

from experiments.bench.inputs import Timed

BURST, CALLS = 2.0, 4
"""Seconds after which no further call begins, and calls at most."""


class Job(NamedTuple):
    """One measured process: who runs, what it does, the dtype of the weights, and how many sequences."""

    who: str
    task: str
    dtype: str = "float32"
    rows: int = 1


class Ready(TypedDict):
    """The first line from a measured process."""

    result: list[float]
    weights: int
    set_up_s: float


class Burst(TypedDict):
    """The line after a burst of calls: the seconds of the best, and the peak memory in bytes."""

    seconds: float
    peak: int


def prepare(job: Job, checkpoint: Path, shape: str) -> Timed:
    """Sets a job up."""
    who, task, dtype, rows = job
    if task == "state-tuning step":
        from experiments.bench.tuning import tuning

        return tuning(who, dtype, checkpoint)
    if who in ("ours", "machine"):
        from experiments.bench import ours

        if who == "machine":
            return ours.bandwidth()
        if task == "decoding":
            return ours.decoding(dtype, rows, checkpoint)
        last_only = task != "prefill, all logits"
        return ours.importing(checkpoint) if task == "import" else ours.prefill(dtype, checkpoint, last_only)
    if who == "llama.cpp":
        from experiments.bench import gguf_file, llama

        return llama.decoding(dtype, rows, gguf_file.beside(checkpoint, dtype), shape)
    if who == "keras-hub":
        from experiments.bench import hub

        return hub.decoding(rows, checkpoint, shape) if task == "decoding" else hub.prefill(checkpoint, shape)
    from experiments.bench import peers

    return peers.decoding(checkpoint) if task == "decoding" else peers.prefill(checkpoint)


def work(job: Job, checkpoint: Path, shape: str) -> None:
    """Runs a measured process: sets up, warms up, then times a burst of the call that a line on stdin names."""
    started = time.perf_counter()
    timed = prepare(job, checkpoint, shape)
    for call in timed.calls.values() if job.task != "import" else ():
        call()
    _send({"result": timed.result, "weights": timed.weights, "set_up_s": time.perf_counter() - started})
    for line in sys.stdin:
        _send({"seconds": best_call(timed.calls[line.strip()]), "peak": peak_memory()})


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
        words = [job.who, job.task, job.dtype, str(job.rows), str(checkpoint), shape]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
        )
        self.seconds: dict[str, float] = {}
        self.peak = 0
        try:
            ready: Ready = json.loads(self.read())
        except BaseException:
            self.close()
            raise
        self.result, self.weights = ready["result"], ready["weights"]

    def read(self) -> str:
        """Returns the next JSON line; other output (banners of peers) is passed over.

        Raises:
          RuntimeError: the process ended; with its last line of error.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return line
        status = self.process.wait()
        self.errors.seek(0)
        last = ([line for line in self.errors.read().splitlines() if line.strip()] or ["ended without a message"])[-1]
        raise RuntimeError(f"ended by signal {-status}" if status < 0 else last.strip()[:200])

    def measure(self, name: str = "") -> None:
        """Times a burst of calls; the best of all bursts counts.

        Raises:
          RuntimeError: the process ended; with its last line of error.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        found: Burst = json.loads(self.read())
        self.seconds[name] = min(self.seconds.get(name, float("inf")), found["seconds"])
        self.peak = max(self.peak, found["peak"])

    def close(self) -> None:
        """Ends the process and closes its pipes."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


if __name__ == "__main__":
    work(Job(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])), Path(sys.argv[5]), sys.argv[6])
