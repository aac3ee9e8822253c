"""Speed and memory of the whole model against its peers, on this machine (`rwkv7 bench model`).

Every measurement is a process of its own (so that peak memory is its own), all stay alive, and they are timed in
turn, round after round, a few calls at a time; the best call counts. Peers (`pip install -e ".[peers]"`): PyPI `rwkv`
(torch, CPU) on the same random checkpoint, and keras-hub's RWKV7 on JAX with random weights of the same shape. Correct
first: no time is printed for logits that differ.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from experiments.bench.inputs import DECODE, PREFILL, TUNE
from experiments.bench.weights import make_checkpoint
from experiments.bench.worker import Job, Worker
from experiments.reporting.tables import markdown_table

TOLERANCE = 1e-3
JOBS = (
    Job("ours", "prefill", PREFILL),
    Job("rwkv", "prefill", PREFILL),
    Job("ours", "prefill, all logits", PREFILL),
    Job("keras-hub", "prefill, all logits", PREFILL),
    Job("ours", "decode", DECODE),
    Job("rwkv", "decode", DECODE),
    Job("ours", "state-tuning step", TUNE),
    Job("WKV as autodiffed scan", "state-tuning step", TUNE),
    Job("token-by-token scan", "state-tuning step", TUNE),
)
OTHERS = tuple(sorted({job.who for job in JOBS} - {"ours"}))
"""Whom this project is compared with."""


class HasResult(Protocol):
    """A job that has computed its result."""

    result: list[float]


class Measured(NamedTuple):
    """The best call of a job."""

    task: str
    who: str
    tokens_per_s: float
    ratio: float
    """Its seconds over ours."""
    peak: int
    """Bytes of the process."""


class NotMeasured(NamedTuple):
    """A job without a time, and why."""

    task: str
    who: str
    problem: str


class Import(NamedTuple):
    """Reading the checkpoint: best seconds, peak bytes of the process, bytes of the file."""

    seconds: float
    peak: int
    file: int


class Comparison(NamedTuple):
    """All measurements of one shape."""

    shape: str
    rounds: int
    jobs: list[Measured | NotMeasured]
    importing: Import

    def as_json(self) -> dict[str, object]:
        """Returns all numbers."""
        return {
            "shape": self.shape, "rounds": self.rounds, "rows": [job._asdict() for job in self.jobs],
            "import": self.importing._asdict(),
        }  # fmt: skip


def compare(shape: str, rounds: int, without: Sequence[str] = ()) -> Comparison:
    """Measures every job in turn.

    Args:
      shape: one of `SHAPES`.
      rounds: times that every job is measured; the best call counts.
      without: those of `OTHERS` to leave out.

    Returns:
      The measurements.
    """
    jobs = tuple(job for job in JOBS if job.who not in without)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        size = checkpoint.stat().st_size
        importer = Worker(Job("ours", "import", 0), checkpoint, shape)
        importer.measure()
        importer.close()
        workers, missing = start(jobs, checkpoint, shape)
        missing |= disagreement(workers)
        for index in range(rounds):
            print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
            for job, worker in workers.items():
                if job not in missing:
                    worker.measure()
        for worker in workers.values():
            worker.close()
    return Comparison(shape, rounds, _results(jobs, workers, missing), Import(importer.seconds, importer.peak, size))


def start(jobs: Sequence[Job], checkpoint: Path, shape: str) -> tuple[dict[Job, Worker], dict[Job, str]]:
    """Starts the jobs; returns running workers, and why the others do not run."""
    workers, missing = {}, {}
    for job in jobs:
        print(f"starting {job.who}: {job.task}", file=sys.stderr, flush=True)
        try:
            workers[job] = Worker(job, checkpoint, shape)
        except RuntimeError as error:
            missing[job] = str(error)
    return workers, missing


def disagreement(workers: Mapping[Job, HasResult]) -> dict[Job, str]:
    """Returns the jobs whose result differs from the one that it is compared with: PyPI rwkv's logits, or our loss."""
    wrong = {}
    for job, worker in workers.items():
        tuning = job.task == "state-tuning step"
        peers = (
            w for j, w in workers.items() if (j.who == "ours" and j.task == job.task if tuning else j.who == "rwkv")
        )
        wanted = next((peer.result for peer in peers if peer.result), None)
        if not worker.result or not wanted:
            continue
        scale = max(abs(x) for x in wanted)
        error = float(np.max(np.abs(np.subtract(worker.result, wanted)))) / scale
        if not error <= TOLERANCE:
            wrong[job] = f"wrong: differs by {error:.1e}"
    return wrong


def _results(
    jobs: Sequence[Job], workers: Mapping[Job, Worker], missing: Mapping[Job, str]
) -> list[Measured | NotMeasured]:
    best = {job.task: workers[job].seconds for job in workers if job.who == "ours"}
    results: list[Measured | NotMeasured] = []
    for job in jobs:
        if job in missing:
            results.append(NotMeasured(job.task, job.who, missing[job]))
            continue
        seconds, peak = workers[job].seconds, workers[job].peak
        results.append(Measured(job.task, job.who, job.tokens / seconds, seconds / best[job.task], peak))
    return results


def table(jobs: Sequence[Measured | NotMeasured]) -> str:
    """Returns the jobs as a Markdown table."""
    lines = [["task", "who", "tokens/s", "ours is faster by", "peak memory"]]
    for job in jobs:
        if isinstance(job, NotMeasured):
            lines.append([job.task, job.who, f"not measured: {job.problem}", "", ""])
            continue
        ratio = "" if job.who == "ours" else f"{job.ratio:.2f}x"
        lines.append([job.task, job.who, f"{job.tokens_per_s:.0f}", ratio, f"{job.peak / 2**30:.2f} GiB"])
    return markdown_table(lines)


def show(found: Comparison) -> str:
    """Returns the table and what the import took."""
    seconds, peak, file = found.importing
    return (
        f"{table(found.jobs)}\n\nimport of the .pth: {seconds:.1f} s, peak memory {peak / file:.2f} x the file "
        f"({file / 2**20:.0f} MiB), the interpreter and JAX included"
    )
