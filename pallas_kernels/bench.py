"""How much faster each implementation is than the recurrence as a `lax.scan` with automatic differentiation.

    python -m pallas_kernels.bench [--json PATH] [--repeats N] [--shape B,T,H,N ...]

Every result is checked against the scan before it is timed; runs are interleaved, and the best of several counts.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import IMPLEMENTATIONS, wkv7
from pallas_kernels.shapes import BENCH, Example, Shape, make_example

BASELINE = "scan"
TOLERANCE = 1e-5
TASKS = ("forward", "forward+backward", "gradient of s0")


class WrongResult(ValueError):
    """An implementation that does not agree with the scan."""


def make_task(task: str, implementation: str, example: Example) -> Callable[..., Any]:
    """A jitted function of the seven inputs."""
    op = partial(wkv7, implementation=implementation)

    def loss(*inputs: jax.Array) -> jax.Array:
        y, s_last = op(*inputs)
        return jnp.sum(y * example.dy) + jnp.sum(s_last * example.ds)

    if task == "forward":
        return jax.jit(op)
    return jax.jit(jax.grad(loss, argnums=6 if task == "gradient of s0" else tuple(range(7))))


def check(result: Any, expected: Any, what: str) -> None:
    """Raise WrongResult unless all arrays agree to TOLERANCE, relative to the largest entry of each."""
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        error = float(np.max(np.abs(x - y)) / np.max(np.abs(y)))
        if not error <= TOLERANCE:
            raise WrongResult(f"{what}: relative error {error:.1e} against the scan, no time for a wrong result")


def best_times(functions: dict[str, Callable[..., Any]], inputs: Sequence[Any], repeats: int) -> dict[str, float]:
    """Seconds of the best of several interleaved runs; the functions are compiled."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*inputs))
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(shape: Shape, repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """One row per task and implementation: seconds, seconds of the scan, and their ratio.

    Raises:
        WrongResult: an implementation disagrees with the scan.
    """
    example = make_example(np.random.default_rng(seed), shape)
    inputs = [jnp.asarray(x) for x in example.inputs.values()]
    rows = []
    for task in TASKS:
        functions = {name: make_task(task, name, example) for name in IMPLEMENTATIONS}
        results = {name: function(*inputs) for name, function in functions.items()}
        for name, result in results.items():
            check(result, results[BASELINE], f"{name}, {task}, {tuple(shape)}")
        times = best_times(functions, inputs, repeats)
        for name in times:
            ratio = times[BASELINE] / times[name]
            row = {"task": task, "implementation": name, "seconds": times[name], "scan_seconds": times[BASELINE]}
            rows.append({"shape": shape._asdict(), **row, "ratio": ratio})
    return rows


def parse_shape(text: str) -> Shape:
    """ "B,T,H,N" with K = V = N."""
    try:
        batch, length, heads, size = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write B,T,H,N, for example 4,512,4,64") from None
    if min(batch, length, heads, size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: every size must be at least 1")
    return Shape(batch, length, heads, size, size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 1 if an implementation is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench", description="Times of wkv7 against the plain scan."
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, of which the best counts (default 7)")
    parser.add_argument("--shape", type=parse_shape, action="append", help="B,T,H,N; may be given several times")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: no folder {options.json.parent}")
    rows = []
    print(f"{jax.default_backend()}, float32; ratio = time of the scan / time")
    print(f"{'B':>3} {'T':>5} {'H':>3} {'N':>3}  {'task':<17}{'implementation':<15}{'ms':>9}{'ratio':>8}")
    for shape in options.shape or BENCH:
        try:
            rows += (measured := measure(shape, options.repeats))
        except WrongResult as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        for row in measured:
            label = f"{shape.batch:>3} {shape.length:>5} {shape.heads:>3} {shape.key:>3}  {row['task']:<17}"
            print(f"{label}{row['implementation']:<15}{1e3 * row['seconds']:>9.2f}{row['ratio']:>8.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"backend": jax.default_backend(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
