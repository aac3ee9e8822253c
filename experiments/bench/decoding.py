"""Decoding of one sequence and of many, against peers and the machine's bandwidth (`rwkv7 bench decode`).

As in `rwkv7 bench model` every measurement is a process of its own, timed in turn. One number of sequences comes after
the other. A step reads every weight but the embedding once, and reads and writes the states: that traffic, divided by
the time, stands beside the bandwidth of a sum over a large array, measured in the same rounds.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.bench.inputs import DECODE, SHAPES, Decode, Shape
from experiments.bench.weights import make_checkpoint
from experiments.bench.worker import Job, Worker
from experiments.reporting.tables import markdown_table
from rwkv7_jax import flops
from rwkv7_jax.config import RWKV7Config

KINDS = ("step", "greedy", "top_p 0.85")
PEERS = ("rwkv", "keras-hub")
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
BYTES = {"float32": 4, "bfloat16": 2}
BANDWIDTH = Job("machine", "bandwidth", 0)


class Row(NamedTuple):
    """One line of the table."""

    rows: int
    who: str
    kind: str
    dtype: str
    tokens_per_s: float
    traffic: int
    """Bytes a step moves at least."""
    peak: int
    problem: str = ""
    """Why there is no time."""


class Comparison(NamedTuple):
    """All measurements of one shape."""

    shape: str
    rounds: int
    bandwidth: float
    """Bytes a second that a sum reads."""
    lines: list[Row]

    def as_json(self) -> dict[str, object]:
        """Returns all numbers."""
        lines = [line._asdict() for line in self.lines]
        return {"shape": self.shape, "rounds": self.rounds, "bandwidth": self.bandwidth, "lines": lines}


def jobs(rows: int, dtypes: Sequence[str], without: Sequence[str]) -> list[tuple[Decode, Job]]:
    """Returns what is measured with this many sequences; PyPI rwkv decodes one alone."""
    found = [("ours", Decode(kind, dtype, rows)) for dtype in dtypes for kind in KINDS]
    found += [(who, Decode("step", "float32", rows)) for who in PEERS if who == "keras-hub" or rows == 1]
    return [(task, Job(who, task.name, DECODE * rows)) for who, task in found if who not in without]


def traffic(shape: Shape, task: Decode) -> int:
    """Returns the bytes that one step moves at least: matrices once, states there and back."""
    config = RWKV7Config(*shape)
    recurrence = flops.tuning(config) - 2 * flops.forward(config)
    matrices = (flops.forward(config) - recurrence) // 2
    state = config.n_layer * config.n_embd * config.head_size
    return matrices * BYTES[task.dtype] + 2 * 4 * state * task.rows


def compare(
    shape: str, rows: Sequence[int], dtypes: Sequence[str], rounds: int, without: Sequence[str] = ()
) -> Comparison:
    """Measures every job in turn.

    Args:
      shape: one of `SHAPES`.
      rows: numbers of sequences.
      dtypes: of `BYTES`.
      rounds: times that every job is measured; the best call counts.
      without: those of `PEERS` to leave out.

    Returns:
      The measurements.
    """
    lines, bandwidth = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        for count in rows:
            print(f"{count} sequences", file=sys.stderr, flush=True)
            machine = Worker(BANDWIDTH, checkpoint, shape)
            found = _measured(jobs(count, dtypes, without), machine, checkpoint, shape, rounds)
            bandwidth = max(bandwidth, machine.result[0] / machine.seconds)
            machine.close()
            lines += found
    return Comparison(shape, rounds, bandwidth, lines)


def _measured(
    wanted: Sequence[tuple[Decode, Job]], machine: Worker, checkpoint: Path, shape: str, rounds: int
) -> list[Row]:
    running: list[tuple[Decode, Job, Worker | str]] = []
    for task, job in wanted:
        try:
            running.append((task, job, Worker(job, checkpoint, shape)))
        except RuntimeError as error:
            running.append((task, job, str(error)))
    workers = [(task, worker) for task, _, worker in running if isinstance(worker, Worker)]
    reference = next((worker.result for task, worker in workers if task.dtype == "float32" and worker.result), None)
    for _ in range(rounds):
        for worker in (machine, *(worker for _, worker in workers)):
            worker.measure()
    lines = []
    for task, job, worker in running:
        problem = worker if isinstance(worker, str) else disagreement(worker.result, reference, TOLERANCE[task.dtype])
        speed, peak = (0.0, 0) if isinstance(worker, str) else (job.tokens / worker.seconds, worker.peak)
        moved = traffic(SHAPES[shape], task)
        lines.append(Row(task.rows, job.who, task.kind, task.dtype, 0.0 if problem else speed, moved, peak, problem))
    for _, worker in workers:
        worker.close()
    return lines


def disagreement(found: Sequence[float], wanted: Sequence[float] | None, tolerance: float) -> str:
    """Returns by how much logits differ from the reference if that is too much, else nothing."""
    if not found or wanted is None:
        return ""
    error = float(np.max(np.abs(np.subtract(found, wanted))) / np.max(np.abs(wanted)))
    return "" if error <= tolerance else f"wrong: differs by {error:.1e}"


def table(found: Comparison) -> str:
    """Returns the lines as a Markdown table, each beside our bare step in float32 with as many sequences."""
    base = {line.rows: line.tokens_per_s for line in found.lines if line[1:4] == ("ours", "step", "float32")}
    names = [
        "sequences",
        "who",
        "what",
        "dtype",
        "tokens/s",
        "times our float32 step",
        "moved",
        "of bandwidth",
        "memory",
    ]
    cells = [names]
    for line in found.lines:
        name = [str(line.rows), line.who, line.kind, line.dtype]
        if line.problem:
            cells.append([*name, f"not measured: {line.problem}", "", "", "", ""])
            continue
        ratio = line.tokens_per_s / base[line.rows] if base.get(line.rows) else float("nan")
        share = line.traffic * line.tokens_per_s / line.rows / found.bandwidth
        moved, memory = f"{line.traffic / 1e6:.0f} MB", f"{line.peak / 2**30:.2f} GiB"
        cells.append([*name, f"{line.tokens_per_s:.1f}", f"{ratio:.2f}", moved, f"{share:.0%}", memory])
    return markdown_table(cells)


def show(found: Comparison) -> str:
    """Returns the table and the bandwidth."""
    return f"{table(found)}\n\na sum over a large array reads {found.bandwidth / 1e9:.1f} GB/s"
