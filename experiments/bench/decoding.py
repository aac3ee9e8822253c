"""Decoding of one sequence and of many, against peers and the machine's bandwidth (`rwkv7 bench decode`).

As in `rwkv7 bench model` every measurement is a process of its own, timed in turn. One number of sequences comes after
the other. `generate` is timed from its first token on: the time of a call for that token, which reads the prompt, is
taken off. A step reads every weight but the embedding once, and reads and writes the states: that traffic, divided by
the time, stands beside the bandwidth of a sum over a large array, measured in the same rounds.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.bench import gguf_file
from experiments.bench.inputs import FIRST, GREEDY, SAMPLED, SHAPES, STEP, Shape, decoded
from experiments.bench.model import TOLERANCE, difference
from experiments.bench.weights import make_checkpoint, make_gguf
from experiments.bench.worker import Job, Worker
from experiments.reporting.tables import markdown_table

DTYPES = ("float32", "float32 wide", "bfloat16", "int8", "int8 bfloat16", "int4", "int4 bfloat16")
"""Of our weights; "wide": bfloat16 does not hold them; "bfloat16": products with quantised ones."""
PEERS = ("llama.cpp", "keras-hub", "rwkv")
BANDWIDTH = Job("machine", "bandwidth")


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
    """Bytes of the process, which measures all kinds."""
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


def jobs(rows: int, dtypes: Sequence[str], without: Sequence[str]) -> list[Job]:
    """Returns the processes that decode this many sequences; PyPI rwkv decodes one alone."""
    found = [Job("ours", "decoding", dtype, rows) for dtype in dtypes]
    found += [Job("llama.cpp", "decoding", dtype, rows) for dtype in gguf_file.TYPES]
    found += [Job(who, "decoding", "float32", rows) for who in ("keras-hub", *(("rwkv",) if rows == 1 else ()))]
    return [job for job in found if job.who not in without]


def kinds(job: Job) -> tuple[str, ...]:
    """Returns what a process measures: of peers the bare step alone."""
    return (STEP, GREEDY, SAMPLED) if job.who == "ours" else (STEP,)


def state_bytes(shape: Shape, rows: int) -> int:
    """Returns the bytes of the float32 WKV states, heads of 64."""
    return 4 * rows * shape.n_layer * shape.n_embd * 64


def compare(
    shape: str, rows: Sequence[int], dtypes: Sequence[str], rounds: int, without: Sequence[str] = ()
) -> Comparison:
    """Measures every job in turn.

    Args:
      shape: one of `SHAPES`.
      rows: numbers of sequences.
      dtypes: of `DTYPES`.
      rounds: times that every job is measured; the best call counts.
      without: those of `PEERS` to leave out.

    Returns:
      The measurements.
    """
    lines, bandwidth = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        problem = "" if "llama.cpp" in without else prepare_gguf(checkpoint, shape)
        for count in rows:
            print(f"{count} sequences", file=sys.stderr, flush=True)
            machine = Worker(BANDWIDTH, checkpoint, shape)
            wanted = jobs(count, dtypes, without)
            runs = [Run(job, checkpoint, shape, problem if job.who == "llama.cpp" else "") for job in wanted]
            check(runs)
            for _ in range(rounds):
                machine.measure()
                for run in runs:
                    run.measure()
            bandwidth = max(bandwidth, machine.result[0] / machine.seconds[""])
            machine.close()
            for run in runs:
                lines += run.lines(SHAPES[shape])
                run.close()
    return Comparison(shape, rounds, bandwidth, lines)


def prepare_gguf(checkpoint: Path, shape: str) -> str:
    """Writes the files for llama.cpp; returns why not."""
    try:
        for dtype in gguf_file.TYPES:
            make_gguf(checkpoint, shape, dtype)
    except ImportError as error:
        return str(error)
    return ""


class Run:
    """One process, and why it is not measured."""

    def __init__(self, job: Job, checkpoint: Path, shape: str, problem: str = ""):
        self.job, self.problem = job, problem
        self.worker: Worker | None = None
        if not problem:
            try:
                self.worker = Worker(job, checkpoint, shape)
            except RuntimeError as error:
                self.problem = str(error)

    def measure(self) -> None:
        """Times every kind once, unless something is wrong."""
        if self.worker is None or self.problem:
            return
        try:
            for kind in kinds(self.job):
                self.worker.measure(kind)
            if self.job.who == "ours":
                self.worker.measure(FIRST)
        except RuntimeError as error:
            self.problem = str(error)

    def lines(self, shape: Shape) -> list[Row]:
        """Returns its lines of the table."""
        found = []
        for kind in kinds(self.job):
            seconds = self.worker.seconds.get(kind) if self.worker else None
            if self.problem or self.worker is None or seconds is None:
                found.append(Row(self.job.rows, self.job.who, kind, self.job.dtype, 0.0, 0, 0, self.problem))
                continue
            timed = decoded(kind, self.job.rows)
            if kind != STEP:
                timed, seconds = timed - 1, seconds - self.worker.seconds[FIRST]
            speed = timed * self.job.rows / seconds
            traffic = self.worker.weights + 2 * state_bytes(shape, self.job.rows)
            found.append(Row(self.job.rows, self.job.who, kind, self.job.dtype, speed, traffic, self.worker.peak))
        return found

    def close(self) -> None:
        """Ends the process."""
        if self.worker:
            self.worker.close()


def check(runs: Sequence[Run]) -> None:
    """Marks those whose logits differ from PyPI rwkv's or llama.cpp's in float32, else from our own."""
    results = {run.job.who: run.worker.result for run in runs if run.worker and run.job.dtype == "float32"}
    reference = next((results[who] for who in ("rwkv", "llama.cpp", "keras-hub", "ours") if who in results), None)
    for run in runs:
        if run.worker:
            run.problem = difference(run.worker.result, reference, TOLERANCE[run.job.dtype])


def table(found: Comparison) -> str:
    """Returns the lines as a Markdown table, each beside our bare step in float32 with as many sequences."""
    base = {line.rows: line.tokens_per_s for line in found.lines if line[1:4] == ("ours", STEP, "float32")}
    last = ["tokens/s", "times our float32 step", "moved", "of bandwidth", "memory"]
    cells = [["sequences", "who", "what", "weights", *last]]
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
