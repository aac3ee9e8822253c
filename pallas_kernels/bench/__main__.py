"""Every implementation that this machine can run, beside the scan with automatic differentiation and other libraries.

    python -m pallas_kernels.bench [--json PATH] [--repeats N] [--dtype float32] [--shape B,T,H,N ...]

Forward, forward+backward, the gradient of s0, and decoding one token. Every result is checked against the scan before
it is timed; runs are interleaved, and the best of several counts.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NoReturn, NotRequired, TypedDict

import jax
import numpy as np

from pallas_kernels import IMPLEMENTATIONS, wkv7
from pallas_kernels.bench import peers
from pallas_kernels.bench.measure import (
    DECODE,
    OURS,
    OURS_FLOAT32,
    TASKS,
    THEIRS,
    Data,
    WrongResult,
    bandwidth,
    decoders,
    expected,
    largest_error,
    make_data,
    moved,
)
from pallas_kernels.bench.peers import Peer, Prepared, of_jax
from pallas_kernels.bench.report import report_text
from pallas_kernels.bench.shapes import BENCH, Shape
from pallas_kernels.triton import launch as triton

BASELINES = ("scan", "xla")
"""What the others are compared with: of the op, and of decoding."""
HARDWARE = {"gpu": "gpu", "triton": "gpu", "tpu": "tpu"}
"""The backend of JAX that an implementation needs; the others run anywhere."""


class Row(TypedDict):
    """One candidate at one task: `seconds` and what comes of it, or `failed`, why there is no time."""

    shape: dict[str, int]
    dtype: str
    task: str
    implementation: str
    error: NotRequired[float]
    seconds: NotRequired[float]
    of_bandwidth: NotRequired[float | None]
    ratio: NotRequired[float | None]
    failed: NotRequired[str]


def runnable() -> list[str]:
    """Returns the implementations that this machine can run."""
    here = jax.default_backend()
    found = [name for name in IMPLEMENTATIONS if HARDWARE.get(name, here) == here]
    return [name for name in found if name != "triton" or triton.missing() is None]


def candidates(task: str, others: Sequence[Peer]) -> list[tuple[Peer, bool]]:
    """Returns (what can do the task, whether it is ours)."""
    if task == DECODE:
        return [(peer, True) for peer in decoders()]
    ours = [of_jax(name, partial(wkv7, implementation=name)) for name in runnable()]
    return [(peer, True) for peer in ours] + [(peer, False) for peer in others]


def ready(peer: Peer, ours: bool, task: str, data: Data, wanted: Sequence[np.ndarray]) -> tuple[Prepared, float]:
    """Returns (the peer's state after a first run, its error).

    Raises:
        WrongResult: the result disagrees with the scan.
        Exception: whatever a library raises that does not support the inputs or the machine.
    """
    state = peer.prepare(*data)
    peer.run(state, task)
    peer.wait(state)
    limit = THEIRS if not ours else OURS_FLOAT32 if data[1].dtype == "float32" else OURS
    error = largest_error(peer.result(state), wanted)
    if not error <= limit:
        raise WrongResult(f"relative error {error:.1e} against the scan, no time for a wrong result")
    return state, error


def best_times(states: Sequence[tuple[Peer, Prepared]], task: str, repeats: int) -> list[float]:
    """Returns the seconds of the best of several interleaved runs."""
    best = [float("inf")] * len(states)
    for _ in range(repeats):
        for i, (peer, state) in enumerate(states):
            start = time.perf_counter()
            peer.run(state, task)
            peer.wait(state)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(
    shape: Shape, dtype: str, repeats: int, others: Sequence[Peer] = (), rate: float | None = None
) -> Iterator[Row]:
    """Yields one row per task and candidate: error, seconds, how often that fits into the scan's time, share of `rate`.

    A candidate that fails has `failed`, why, instead. `rate`: bytes per second of the memory, if it is known.

    Raises:
        WrongResult: an implementation of ours disagrees with the scan.
    """
    data = make_data(shape, dtype)
    wanted = expected(*data)
    for task in (*TASKS, DECODE):
        rows: list[Row] = []
        states: list[tuple[Peer, Prepared]] = []
        for peer, ours in candidates(task, others):
            row: Row = {"shape": shape._asdict(), "dtype": dtype, "task": task, "implementation": peer.name}
            try:
                state, row["error"] = ready(peer, ours, task, data, wanted[task])
                states.append((peer, state))
            except Exception as error:
                row["failed"] = " ".join(str(error).split())[:120]
                if ours and isinstance(error, WrongResult):
                    raise WrongResult(f"{peer.name}, {task}, {tuple(shape)}: {error}") from None
            rows.append(row)
        timed = [row for row in rows if "failed" not in row]
        times = best_times(states, task, repeats)
        base = [seconds for row, seconds in zip(timed, times, strict=True) if row["implementation"] in BASELINES]
        for row, seconds in zip(timed, times, strict=True):
            row["seconds"] = seconds
            row["of_bandwidth"] = rate and moved(task, shape, dtype) / seconds / rate
            row["ratio"] = base[0] / seconds if base else None
        yield from rows


def show(row: Row) -> str:
    """Returns one line of the table."""
    label = "{batch:>3} {length:>5} {heads:>3} {key:>3}".format(**row["shape"])
    label += f"  {row['task']:<17}{row['implementation']:<24}"
    if "seconds" not in row or "error" not in row:
        return label + row.get("failed", "")
    ratio, share = (f"{z:.2f}" if z else "-" for z in (row.get("ratio"), row.get("of_bandwidth")))
    return f"{label}{1e3 * row['seconds']:>9.3f}{ratio:>8}{share:>8}{row['error']:>9.0e}"


class Parser(argparse.ArgumentParser):
    """Its errors are one line each, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        self.exit(2, f"error: {message}\n")


def parse_shape(text: str) -> Shape:
    """Reads "B,T,H,N", with K = V = N."""
    try:
        batch, length, heads, size = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write B,T,H,N, for example 4,512,4,64") from None
    if min(batch, length, heads, size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: every size must be at least 1")
    return Shape(batch, length, heads, size, size)


def check_output(parser: argparse.ArgumentParser, path: pathlib.Path | None) -> None:
    """Ends with a usage error where --json cannot be written, before anything is measured."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        parser.error(f"--json: {path} is a folder" if path.is_dir() else f"--json: no folder {path.parent}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(
        prog="python -m pallas_kernels.bench", description="Times of wkv7 against the plain scan and other libraries."
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, of which the best counts (default 7)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--shape", type=parse_shape, action="append", help="B,T,H,N; may be given several times")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    check_output(parser, options.json)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if an implementation is wrong."""
    options = parse(arguments)
    backend = jax.default_backend()
    others, absent = peers.available()
    rate = None if backend == "cpu" else bandwidth()
    rows: list[Row] = []
    report = {"backend": backend, "bytes_per_second": rate, "absent": absent, "rows": rows}
    memory = f"memory {rate / 1e12:.2f} TB/s; " if rate else ""
    print(f"{backend}, {options.dtype}; {memory}ratio = time of the scan (decode: of XLA) / time; {'; '.join(absent)}")
    print(f"{'B':>3} {'T':>5} {'H':>3} {'N':>3}  {'task':<17}{'implementation':<24}", end="")
    print(f"{'ms':>9}{'ratio':>8}{'memory':>8}{'error':>9}")
    for shape in options.shape or BENCH:
        try:
            for row in measure(shape, options.dtype, options.repeats, others, rate):
                rows.append(row)
                print(show(row), flush=True)
        except WrongResult as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if options.json:
        options.json.write_text(report_text(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
