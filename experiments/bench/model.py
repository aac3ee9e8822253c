"""Speed and memory of the whole model against its peers, on this machine (`rwkv7 bench model`).

Every measurement is a process of its own (so that peak memory is its own); those of one task stay alive and are timed
in turn, round after round, a few calls at a time; the best call counts. Peers (`pip install "rwkv7-jax[peers]"`) work
on the same random checkpoint: PyPI `rwkv` (torch, CPU), and keras-hub's RWKV7 on JAX. A tuning step has as rivals the
same model with a WKV op that JAX differentiates. Correct first: no time is printed for logits or losses that differ.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from experiments.bench.inputs import PREFILL, TUNE
from experiments.bench.weights import make_checkpoint
from experiments.bench.worker import Job, Worker
from experiments.reporting.tables import markdown_table

TOLERANCE = {
    **{"float32": 1e-3, "bfloat16": 5e-2, "int8": 5e-2, "int4": 0.5, "q8_0": 5e-2},
    **{"float32 wide": 1e-3, "int8 bfloat16": 5e-2, "int4 bfloat16": 0.5},
}
"""How far logits may be from the reference, over its largest; quantised weights are others."""
TOKENS = {"prefill": PREFILL, "prefill, all logits": PREFILL, "state-tuning step": TUNE}
"""The tasks, and what one call works on."""
PEERS = {
    "prefill": ("rwkv",),
    "prefill, all logits": ("keras-hub",),
    "state-tuning step": ("WKV as unrolled autodiffed scan", "WKV as autodiffed scan", "token-by-token scan"),
}
JOBS = tuple(
    job
    for task, others in PEERS.items()
    for job in (
        *(Job("ours", task, dtype) for dtype in ("float32", "bfloat16", "int8")),
        *(Job(who, task) for who in others),
    )
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
    dtype: str
    tokens_per_s: float
    ratio: float
    """Its speed over ours in float32."""
    peak: int
    """Bytes of the process."""


class NotMeasured(NamedTuple):
    """A job without a time, and why."""

    task: str
    who: str
    dtype: str
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
    """Measures every job of a task in turn, task after task.

    Args:
      shape: one of `SHAPES`.
      rounds: times that every job is measured; the best call counts.
      without: those of `OTHERS` to leave out.

    Returns:
      The measurements.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        size = checkpoint.stat().st_size
        importer = Worker(Job("ours", "import"), checkpoint, shape)
        importer.measure()
        importer.close()
        for task in TOKENS:
            print(task, file=sys.stderr, flush=True)
            jobs = tuple(job for job in JOBS if job.task == task and job.who not in without)
            rows += measured(jobs, checkpoint, shape, rounds)
    return Comparison(shape, rounds, rows, Import(importer.seconds[""], importer.peak, size))


def measured(jobs: Sequence[Job], checkpoint: Path, shape: str, rounds: int) -> list[Measured | NotMeasured]:
    """Returns the jobs of one task, measured in turn."""
    workers, missing = start(jobs, checkpoint, shape)
    missing |= disagreement(workers)
    for _ in range(rounds):
        for job, worker in workers.items():
            if job not in missing:
                try:
                    worker.measure()
                except RuntimeError as error:
                    missing[job] = str(error)
    for worker in workers.values():
        worker.close()
    return _results(jobs, workers, missing)


def start(jobs: Sequence[Job], checkpoint: Path, shape: str) -> tuple[dict[Job, Worker], dict[Job, str]]:
    """Starts the jobs; returns running workers, and why the others do not run."""
    workers, missing = {}, {}
    for job in jobs:
        try:
            workers[job] = Worker(job, checkpoint, shape)
        except RuntimeError as error:
            missing[job] = str(error)
    return workers, missing


def disagreement(workers: Mapping[Job, HasResult]) -> dict[Job, str]:
    """Returns the jobs whose result differs from the first peer's in float32, or from ours where there is no peer."""
    floats = [(job, worker.result) for job, worker in workers.items() if job.dtype == "float32" and worker.result]
    reference = next((result for job, result in floats if job.who != "ours"), None) or next(
        (result for _, result in floats), None
    )
    found = {job: difference(worker.result, reference, TOLERANCE[job.dtype]) for job, worker in workers.items()}
    return {job: problem for job, problem in found.items() if problem}


def difference(found: Sequence[float], wanted: Sequence[float] | None, tolerance: float) -> str:
    """Returns by how much numbers differ from the reference, over its largest, if that is too much, else nothing."""
    if not found or wanted is None:
        return ""
    error = float(np.max(np.abs(np.subtract(found, wanted))) / np.max(np.abs(wanted)))
    return "" if error <= tolerance else f"wrong: differs by {error:.1e}"


def _results(
    jobs: Sequence[Job], workers: Mapping[Job, Worker], missing: Mapping[Job, str]
) -> list[Measured | NotMeasured]:
    ours = [job for job in jobs if (job.who, job.dtype) == ("ours", "float32") and job not in missing]
    base = workers[ours[0]].seconds[""] if ours else float("nan")
    results: list[Measured | NotMeasured] = []
    for job in jobs:
        if job in missing:
            results.append(NotMeasured(job.task, job.who, job.dtype, missing[job]))
            continue
        seconds, peak = workers[job].seconds[""], workers[job].peak
        results.append(Measured(job.task, job.who, job.dtype, TOKENS[job.task] / seconds, base / seconds, peak))
    return results


def table(jobs: Sequence[Measured | NotMeasured]) -> str:
    """Returns the jobs as a Markdown table."""
    lines = [["task", "who", "weights", "tokens/s", "times ours in float32", "peak memory"]]
    for job in jobs:
        if isinstance(job, NotMeasured):
            lines.append([job.task, job.who, job.dtype, f"not measured: {job.problem}", "", ""])
            continue
        speed, ratio, memory = f"{job.tokens_per_s:.0f}", f"{job.ratio:.2f}", f"{job.peak / 2**30:.2f} GiB"
        lines.append([job.task, job.who, job.dtype, speed, ratio, memory])
    return markdown_table(lines)


def show(found: Comparison) -> str:
    """Returns the table and what the import took."""
    seconds, peak, file = found.importing
    return (
        f"{table(found.jobs)}\n\nimport of the .pth: {seconds:.1f} s, peak memory {peak / file:.2f} x the file "
        f"({file / 2**20:.0f} MiB), the interpreter and JAX included"
    )
