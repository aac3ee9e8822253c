"""Check and time the GPU kernels on the GPU of this machine, against other libraries, in one call under 8 minutes.

    python -m pallas_kernels.bench.gpu [--json PATH] [--seconds N] [--shape B,T,H,N ...] [--tiny]

First every kernel against the recurrence in float64; then, for each shape, every implementation and every peer that can
be imported: its largest error against the scan in float32 on two heads, and, only if that is small, its best time and
the fraction of the measured memory bandwidth that it reaches; decoding; at last the tunings. `rwkv7 bench gpu` adds
whole models. Everything goes to one JSON file, written anew after each row. --tiny is a rehearsal on any machine: tiny
shapes, kernels interpreted where there is no GPU; its times say nothing.
"""

import argparse
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import IMPLEMENTATIONS, decode, gpu
from pallas_kernels.bench import check, peers
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
    make_data,
    moved,
)
from pallas_kernels.bench.peers import Peer, of_jax
from pallas_kernels.bench.report import report_text
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.gpu.tuning import BFLOAT16, Form, Tuning
from pallas_kernels.reference import Token
from pallas_kernels.triton import launch as triton


class Sizes(NamedTuple):
    """What is checked and measured. checks: shapes of the float64 checks; shapes: of the op; step: of decoding."""

    checks: tuple[Shape, ...]
    shapes: tuple[Shape, ...]
    step: Shape
    memory: int
    """Numbers of the array whose reading and writing measures the bandwidth."""


FULL = Sizes(
    (Shape(2, 257, 2, 64, 64), Shape(1, 97, 3, 24, 40)),
    (Shape(8, 4096, 32, 64, 64), Shape(1, 4096, 12, 64, 64)),
    Shape(1024, 1, 32, 64, 64),
    1 << 28,
)
TINY = Sizes((Shape(1, 70, 1, 16, 16),), (Shape(1, 70, 2, 16, 16),), Shape(4, 1, 2, 16, 16), 1 << 12)


class Row(TypedDict):
    """One candidate at one task: its time, or `failed`, why there is none."""

    shape: dict[str, int]
    name: str
    task: str
    error: NotRequired[float]
    seconds: NotRequired[float]
    of_bandwidth: NotRequired[float]
    failed: NotRequired[str]


DEFAULTS = ("gpu default", "gpu small", "gpu sequential", "gpu divided", "triton", "chunked")
"""Those of `ours` that are measured before anything is tuned."""
Section: TypeAlias = Callable[[], Iterator[Mapping[str, object]]]
"""A part of the report that yields its rows; what is not started in time is left out."""


def tunings() -> Iterator[tuple[str, Tuning]]:
    """Yields the tunings worth trying, by the name of their differences from the default."""
    yield "gpu default", BFLOAT16
    forms: tuple[Form, ...] = ("small", "sequential", "divided")
    for form in forms:
        yield f"gpu {form}", BFLOAT16._replace(form=form)
    for warps, stages in itertools.product((2, 4, 8), (1, 2, 3)):
        yield f"gpu warps={warps} stages={stages}", BFLOAT16._replace(form="sequential", warps=warps, stages=stages)
    for block, stages in itertools.product((16, 32, 64), (2, 3, 4)):
        changed = BFLOAT16.divided._replace(block=block, stages=stages)
        yield f"gpu scan block={block} stages={stages}", BFLOAT16._replace(form="divided", divided=changed)
    for name, warps in itertools.product(("prepare_warps", "output_warps", "gradient_warps"), (4, 8)):
        changed = BFLOAT16.divided._replace(**{name: warps})
        yield f"gpu {name}={warps}", BFLOAT16._replace(form="divided", divided=changed)


def ours(interpret: bool = False) -> list[Peer]:
    """Returns our implementations as peers of themselves; interpreted, those alone that the defaults choose from."""
    found = [of_jax(name, gpu.make_op(tuning, interpret)) for name, tuning in tunings()]
    if triton.missing() is None:
        found.append(of_jax("triton", triton.make_op()))
    return [*(found[:4] if interpret else found), of_jax("chunked", IMPLEMENTATIONS["chunked"])]


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


def measure_decode(rate: float, shape: Shape, interpret: bool = False) -> Iterator[Row]:
    """Yields one row per way to take one step for many sequences, the states in place."""
    inputs = make_example(np.random.default_rng(0), shape).inputs
    token = Token(*(jnp.asarray(z[:, 0], jnp.bfloat16) for n, z in inputs.items() if n != "s0"), reset=None)
    y, s = jax.jit(decode.xla_step)(token, jnp.asarray(inputs["s0"]))
    for name, step in (("gpu", partial(decode.gpu_step, interpret=interpret)), ("xla", decode.xla_step)):
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


def show(row: Mapping[str, object]) -> None:
    """Prints a row in one line: what it is of, then what was found."""
    texts = [str(row[key]) for key in ("kernel", "name", "task", "dtype", "regime") if key in row]
    shape = row.get("shape")
    if isinstance(shape, Mapping):
        texts.insert(0, ",".join(str(size) for size in shape.values()))
    if "failed" in row:
        texts.append(f"FAILED: {row['failed']}")
    elif "wrong" in row:
        texts.append(f"WRONG: {', '.join(map(str, row['wrong']))}" if row["wrong"] else "right")  # type: ignore[arg-type]
    texts += [f"{key} {row[key]:.4g}" for key in NUMBERS if isinstance(row.get(key), int | float)]
    print("  ".join(texts), flush=True)


NUMBERS = ("seconds", "of_bandwidth", "error", "sequences", "tokens_per_second", "mfu", "times_published")
"""Keys of rows whose values are printed."""


def main(arguments: Sequence[str] | None = None, models: Callable[[bool], Sequence[Section]] | None = None) -> int:
    """Prints and writes the report; exit status 1 where there is no GPU or a kernel is wrong.

    models: from whether the rehearsal is meant to what else is measured, after the defaults and before the tunings.
    """
    options = _options(arguments)
    if jax.default_backend() != "gpu" and not options.tiny:
        print(f"error: no GPU: this process computes on {jax.default_backend()}", file=sys.stderr)
        return 1
    begin, sizes = time.monotonic(), TINY if options.tiny else FULL
    if options.shape:
        sizes = sizes._replace(shapes=tuple(options.shape))
    rate, (others, absent) = bandwidth(sizes.memory), peers.available()
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}; memory {rate / 1e12:.2f} TB/s", *absent, sep="\n")
    rows: list[Mapping[str, object]] = []
    report = {
        "device": device, "jax": jax.__version__, "rehearsal": options.tiny, "bytes_per_second": rate, "absent": absent,
        "complete": False, "rows": rows,
    }  # fmt: skip
    more = models(options.tiny) if models else ()
    for row in itertools.chain.from_iterable(part() for part in sections(sizes, others, rate, more)):
        rows.append(row)
        show(row)
        options.json.write_text(report_text(report), encoding="utf-8")
        if time.monotonic() - begin > options.seconds:
            print("out of time: what is missing was not started")
            break
    else:
        report["complete"] = True
    report["seconds"] = time.monotonic() - begin
    options.json.write_text(report_text(report), encoding="utf-8")
    return int(any(row.get("wrong") for row in rows))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m pallas_kernels.bench.gpu", description="Check and time on a GPU.")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("gpu_check.json"), help="where to write")
    parser.add_argument("--seconds", type=float, default=450, help="start nothing new after this (default 450)")
    parser.add_argument("--shape", type=parse_shape, action="append", help="B,T,H,N; may be given several times")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on any machine, in tiny shapes")
    options = parser.parse_args(arguments)
    check_output(parser, options.json)
    return options


def sections(sizes: Sizes, others: list[Peer], rate: float, more: Sequence[Section]) -> Iterator[Section]:
    """Yields what to do, most wanted first: checks, defaults and peers at every shape, decoding, `more`, tunings."""
    interpret = jax.default_backend() != "gpu"
    yield lambda: check.checks(check.candidates(interpret), sizes.checks)  # type: ignore[return-value]
    yield lambda: check.check_decode(sizes.step._replace(batch=4), interpret)  # type: ignore[return-value]
    everything = ours(interpret)
    first = [p for p in everything if p.name in DEFAULTS] + others
    rest = [p for p in everything if p not in first]

    def of(shape: Shape, peers: list[Peer]) -> Iterator[Row]:
        data = make_data(shape, jnp.bfloat16)
        wanted = expected(*data)
        for peer in peers:
            yield from measure(shape, peer, data, wanted, rate)

    yield from (partial(of, shape, first) for shape in sizes.shapes)  # type: ignore[misc]
    yield lambda: measure_decode(rate, sizes.step, interpret)  # type: ignore[return-value]
    yield from more
    yield from (partial(of, shape, rest) for shape in sizes.shapes)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
