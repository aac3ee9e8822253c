"""A measured process of its own, and the parent's end of it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BURST, CALLS = 3.0, 4
"""Seconds after which no further call begins, and calls at most."""


class Job(NamedTuple):
    """One measured process: who runs, what it does, and its unit of work in tokens."""

    who: str
    task: str
    tokens: int


def work(who: str, task: str, checkpoint: Path, shape: str) -> None:
    """A measured process: set up, warm up, then for every line on stdin the time of the best call in about BURST."""
    from experiments.bench import ours, peers

    started = time.perf_counter()
    if task == "import":
        call, result = ours.importing(checkpoint)
    elif task == "state-tuning step":
        call, result = ours.tuning(who, checkpoint)
    elif who == "keras-hub":
        call, result = peers.keras_hub(shape)
    else:
        call, result = (ours.generation if who == "ours" else peers.rwkv_pip)(task, checkpoint)
    if task != "import":
        call()
    print(json.dumps({"result": result, "set_up_s": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": best_call(call), "peak": peak_memory()}), flush=True)


def best_call(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call; after others had the machine, the first one finds cold caches."""
    times = []
    while sum(times) < BURST and len(times) < CALLS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_memory() -> int:
    """Largest resident memory of this process so far in bytes (Linux; ru_maxrss would include the parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class Worker:
    """The parent's end of one measured process."""

    def __init__(self, job: Job, checkpoint: Path, shape: str):
        command = [sys.executable, "-m", "experiments.bench", "--worker", job.who, job.task]
        command += ["--checkpoint", str(checkpoint), "--shape", shape]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seconds, self.peak = float("inf"), 0
        self.result = self.read()["result"]

    def read(self) -> dict[str, Any]:
        """The next JSON line; other output (banners of peers) is passed over.

        Raises: RuntimeError with the process's last line of error if it ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        assert self.process.stderr is not None
        raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["ended without a word"])[-1])

    def measure(self) -> None:
        """Time a burst of calls; the best of all bursts counts."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        row = self.read()
        self.seconds, self.peak = min(self.seconds, row["seconds"]), max(self.peak, row["peak"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
