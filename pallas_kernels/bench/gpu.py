"""Check and time the GPU kernels on the GPU of this machine, against other libraries, in one call under 10 minutes.

    python -m pallas_kernels.bench.gpu [--json PATH] [--seconds N] [--shape B,T,H,N ...]

First the test suite with the compiled kernels, if the tests are here; then, for each shape, every implementation, every
tuning and every peer that can be imported: its largest error against the scan in float32 on two heads, and, only if
that is small, its best time and the fraction of the measured memory bandwidth that it reaches.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NotRequired, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import IMPLEMENTATIONS, decode, gpu
from pallas_kernels.bench import peers
from pallas_kernels.bench.__main__ import Parser, check_output, parse_shape
from pallas_kernels.bench.measure import (
    OURS,
    TASKS,
    THEIRS,
    Data,
    bandwidth,
    best_seconds,
    expected,
    largest_error,
    moved,
)
from pallas_kernels.bench.peers import Peer, of_jax
from pallas_kernels.bench.report import report_text
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.gpu.tuning import BFLOAT16, Tuning
from pallas_kernels.reference import Token
from pallas_kernels.triton import launch as triton

SHAPES = (Shape(8, 4096, 32, 64, 64), Shape(1, 4096, 12, 64, 64))
DECODE = Shape(1024, 1, 32, 64, 64)


class Row(TypedDict):
    """One candidate at one task: its time, or `failed`, why there is none."""

    shape: dict[str, int]
    name: str
    task: str
    error: NotRequired[float]
    seconds: NotRequired[float]
    of_bandwidth: NotRequired[float]
    failed: NotRequired[str]


Candidates: TypeAlias = Callable[[Shape, float], Iterator[Row]]
"""(shape, bytes per second of the memory) -> the rows of what is to be measured at that shape."""


def tunings() -> Iterator[tuple[str, Tuning]]:
    """Yields the tunings worth trying, by the name of their differences from the default."""
    changes: list[dict[str, int]] = [{}]
    changes += [{"warps": w, "stages": s} for w, s in itertools.product((2, 4, 8), (1, 2, 3))]
    changes += [{"chunk": 32, "warps": w} for w in (4, 8)]
    changes += [{"checkpoint": c, "backward_warps": w} for c, w in itertools.product((16, 32, 64), (4, 8))]
    changes += [{"value_block": v} for v in (16, 32)]
    for change in changes:
        yield "gpu " + (" ".join(f"{n}={v}" for n, v in change.items()) or "default"), BFLOAT16._replace(**change)


def ours() -> list[Peer]:
    """Returns our implementations as peers of themselves."""
    found = [of_jax(name, gpu.make_op(tuning)) for name, tuning in tunings()]
    if triton.missing() is None:
        found.append(of_jax("triton", triton.make_op()))
    return [*found, of_jax("chunked", IMPLEMENTATIONS["chunked"])]


def measure(
    shape: Shape, peer: Peer, data: Data, wanted: dict[str, tuple[np.ndarray, ...]], rate: float
) -> Iterator[Row]:
    """Yields one row per task: the error, and the time unless the result is wrong or the library refuses."""
    limit = THEIRS if peer.name.split()[0] in ("fla", "rwkv-ops", "ejkernel") else OURS
    for task in TASKS:
        row: Row = {"shape": shape._asdict(), "name": peer.name, "task": task}
        try:
            state = peer.prepare(*data)
            peer.run(state, task)
            peer.wait(state)
            error = largest_error(peer.result(state), wanted[task])
            if not error <= limit:
                raise ValueError(f"wrong: relative error {error:.1e}, no time for a wrong result")
            row["error"] = error
            row["seconds"] = best_seconds(lambda s=state, t=task: peer.run(s, t), lambda s=state: peer.wait(s))
            row["of_bandwidth"] = moved(task, shape, jnp.bfloat16) / row["seconds"] / rate
        except Exception as failure:  # a peer may fail in any way; the message is the result
            row["failed"] = " ".join(str(failure).split())[:160]
        yield row


def measure_decode(rate: float, shape: Shape = DECODE) -> Iterator[Row]:
    """Yields one row per way to take one step for many sequences, the states in place."""
    inputs = make_example(np.random.default_rng(0), shape).inputs
    token = Token(*(jnp.asarray(z[:, 0], jnp.bfloat16) for n, z in inputs.items() if n != "s0"), reset=None)
    y, s = jax.jit(decode.xla_step)(token, jnp.asarray(inputs["s0"]))
    for name, step in (("gpu", decode.gpu_step), ("xla", decode.xla_step)):
        run = jax.jit(step, donate_argnums=1)
        other_y, other_s = run(token, jnp.asarray(inputs["s0"]))
        errors = [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in ((other_y, y), (other_s, s))]
        row: Row = {"shape": shape._asdict(), "name": f"decode {name}", "task": "decode"}
        if not all(error <= OURS for error in errors):
            yield {**row, "failed": f"wrong result: relative errors {errors[0]:.1e} and {errors[1]:.1e}"}
            continue
        row["error"] = max(errors)
        states = [other_s]

        def start(run=run, states=states) -> None:
            states.append(run(token, states.pop())[1])

        seconds = best_seconds(start, lambda states=states: states[0].block_until_ready())
        moved = 2 * s.size * 4 + 14 * token.r.size
        yield {**row, "seconds": seconds, "of_bandwidth": moved / seconds / rate}


def suite(seconds: float) -> str:
    """Returns the last line of the test suite with compiled kernels, or why there is none."""
    folder = pathlib.Path(__file__).parents[2] / "tests" / "pallas_kernels"
    if not folder.is_dir():
        return "not run: the tests are not here"
    command = [sys.executable, "-m", "pytest", "-x", str(folder / "test_wkv7.py"), "-k", "gpu or triton"]
    command += ["-W", "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"]
    environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return f"not finished in {seconds:.0f} s"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def show(row: Row) -> None:
    """Prints one line of the table."""
    shape = "{batch:>4} {length:>5} {heads:>3} {key:>3}".format(**row["shape"])
    if "seconds" in row and "of_bandwidth" in row and "error" in row:
        end = f"{1e3 * row['seconds']:9.3f} ms {row['of_bandwidth']:6.1%}  error {row['error']:.1e}"
    else:
        end = row.get("failed", "")
    print(f"{shape}  {row['task']:<17}{row['name']:<36}{end}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes the table; exit status 1 where there is no GPU."""
    parser = Parser(prog="python -m pallas_kernels.bench.gpu", description="Check and time on a GPU.")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("gpu_check.json"), help="where to write")
    parser.add_argument("--seconds", type=float, default=570, help="start nothing new after this (default 570)")
    parser.add_argument("--shape", type=parse_shape, action="append", help="B,T,H,N; may be given several times")
    options = parser.parse_args(arguments)
    check_output(parser, options.json)
    begin = time.monotonic()
    if jax.default_backend() != "gpu":
        print(f"error: no GPU: this process computes on {jax.default_backend()}", file=sys.stderr)
        return 1
    device, tested, rate = jax.devices()[0].device_kind, suite(0.4 * options.seconds), bandwidth()
    others, absent = peers.available()
    print(f"{device}, JAX {jax.__version__}; suite: {tested}; memory {rate / 1e12:.2f} TB/s")
    print(*absent, sep="\n")
    rows: list[Row] = []
    report = {
        "device": device, "jax": jax.__version__, "suite": tested, "bytes_per_second": rate, "absent": absent,
        "rows": rows,
    }  # fmt: skip
    for shape, candidates in _work(options.shape or SHAPES, others):
        for row in candidates(shape, rate):
            rows.append(row)
            show(row)
            options.json.write_text(report_text(report), encoding="utf-8")
            if time.monotonic() - begin > options.seconds:
                print("out of time: what is missing was not started")
                return 0
    return 0


def _work(shapes: Sequence[Shape], others: list[Peer]) -> Iterator[tuple[Shape, Candidates]]:
    """What to measure, most wanted first: defaults and peers at every shape, decoding, then tunings."""
    everything = ours()
    first = [p for p in everything if p.name in ("gpu default", "triton", "chunked")] + others
    rest = [p for p in everything if p not in first]

    def of(peers: list[Peer]) -> Candidates:
        def rows(shape: Shape, rate: float) -> Iterator[Row]:
            example = make_example(np.random.default_rng(0), shape)
            inputs = {n: jnp.asarray(z, jnp.float32 if n == "s0" else jnp.bfloat16) for n, z in example.inputs.items()}
            data = inputs, jnp.asarray(example.dy, jnp.bfloat16), jnp.asarray(example.ds)
            wanted = expected(*data)
            for peer in peers:
                yield from measure(shape, peer, data, wanted, rate)

        return rows

    yield from ((shape, of(first)) for shape in shapes)
    yield DECODE, lambda shape, rate: measure_decode(rate, shape)
    yield from ((shape, of(rest)) for shape in shapes)


if __name__ == "__main__":
    sys.exit(main())
