"""Kernels against the float64 oracle: outputs and all gradients, in every regime, as they run on this machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels import decode, gpu
from pallas_kernels.bench.oracle import oracle
from pallas_kernels.bench.shapes import GATE, REGIMES, Example, Shape, make_example
from pallas_kernels.gpu.tuning import BFLOAT16, FLOAT32, Form
from pallas_kernels.reference import Token
from pallas_kernels.triton import launch as triton

VECTORS = ("r", "log_w", "k", "v", "a", "b")
NAMES = (*VECTORS, "s0")
DTYPES = ("bfloat16", "float32")
EXACT, ROUNDED, ALIGNED = 1e-5, 5e-3, 8e-2
"""Largest error: float32, of the largest entry; bfloat16, relative L2; of a and b where all keys are one direction."""

Op = Callable[..., tuple[Array, Array]]
"""(r, log_w, k, v, a, b, s0, reset) -> (y, s_T)."""


class Check(TypedDict):
    """One kernel in one regime: the error of each output and gradient, and how many of them are too large."""

    kernel: str
    dtype: str
    regime: str
    shape: dict[str, int]
    errors: NotRequired[dict[str, float]]
    wrong: list[str]
    failed: NotRequired[str]


class Candidate(NamedTuple):
    """A kernel to check: its name, the dtype of its inputs, the op, and the regimes that it takes."""

    name: str
    dtype: str
    op: Op
    regimes: tuple[str, ...] = REGIMES


def candidates(interpret: bool = False) -> list[Candidate]:
    """Returns the GPU kernels, one form after the other; interpreted, for a machine without a GPU."""
    forms: tuple[Form, ...] = ("small", "sequential", "divided")
    tunings = [(f"gpu {form}", "bfloat16", BFLOAT16._replace(form=form)) for form in forms]
    tunings.append(("gpu small", "float32", FLOAT32))
    found = [Candidate(name, dtype, gpu.make_op(tuning, interpret)) for name, dtype, tuning in tunings]
    wide = [("gpu wide", gpu.make_op(interpret=interpret, wide=True))]
    if triton.missing() is None:
        found += [Candidate("triton", dtype, triton.make_op()) for dtype in DTYPES]
        wide.append(("triton wide", triton.make_op(wide=True)))
    return found + [Candidate(name, dtype, op, ("model", GATE)) for name, op in wide for dtype in DTYPES]


def checks(found: Sequence[Candidate], shapes: Sequence[Shape], seed: int = 0) -> Iterator[Check]:
    """Checks each candidate at each shape in its regimes, with resets; the gradient of s0 alone too ("s0 alone")."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        everywhere = np.ones((shape.batch, shape.length), bool)
        reset = rng.random(everywhere.shape) < 0.02
        examples = {regime: make_example(rng, shape, regime) for regime in (*REGIMES, GATE)}
        for candidate in found:
            run = compiled(candidate.op)
            for regime in candidate.regimes:
                rounded = in_dtype(examples[regime], candidate.dtype)
                wanted = oracle(rounded, everywhere, reset)
                wanted["s0 alone"] = wanted["s0"]
                yield checked(candidate, shape, regime, partial(run, rounded, reset), wanted)


def compiled(op: Op) -> Callable[[Example, np.ndarray], dict[str, Array]]:
    """Returns (example, reset) -> outputs and gradients by name."""

    def run(vectors: list[Array], s0: Array, dy: Array, ds: Array, reset: Array) -> dict[str, Array]:
        (y, s_last), pull = jax.vjp(lambda *x: op(*x, reset), *vectors, s0)
        _, alone = jax.vjp(lambda s: op(*vectors, s, reset), s0)
        gradients = dict(zip(NAMES, pull((dy, ds)), strict=True))
        return {"y": y, "s_T": s_last, **gradients, "s0 alone": alone((dy, ds))[0]}

    fast = jax.jit(run)

    def call(example: Example, reset: np.ndarray) -> dict[str, Array]:
        vectors = [jnp.asarray(example.inputs[name]) for name in VECTORS]
        dy, ds = jnp.asarray(example.dy), jnp.asarray(example.ds)
        return fast(vectors, jnp.asarray(example.inputs["s0"]), dy, ds, jnp.asarray(reset))

    return call


def in_dtype(example: Example, dtype: str) -> Example:
    """The example with its vectors rounded; states stay float32."""
    inputs = {n: z if n == "s0" else np.asarray(z, dtype) for n, z in example.inputs.items()}
    return example._replace(inputs=inputs, dy=np.asarray(example.dy, dtype))


def checked(
    candidate: Candidate,
    shape: Shape,
    regime: str,
    run: Callable[[], Mapping[str, Array]],
    wanted: Mapping[str, np.ndarray],
) -> Check:
    """Runs a kernel and compares all that it gives."""
    row: Check = {
        "kernel": candidate.name, "dtype": candidate.dtype, "regime": regime, "shape": shape._asdict(), "wrong": [],
    }  # fmt: skip
    try:
        result = run()
        row["errors"] = {n: error(result[n], y, candidate.dtype) for n, y in wanted.items()}
    except Exception as failure:  # the message is the result
        row["failed"] = " ".join(str(failure).split())[:200]
        row["wrong"] = ["all"]
        return row
    for name, found in row["errors"].items():
        limit = ALIGNED if regime == "aligned" and name in ("a", "b") else ROUNDED
        if not found <= (EXACT if candidate.dtype == "float32" else limit):
            row["wrong"].append(name)
    return row


def error(x: Array, y: np.ndarray, dtype: str) -> float:
    """The difference over the largest entry in float32, and over the norm in bfloat16; itself where y is zero."""
    difference = np.asarray(x, np.float64) - y
    if dtype == "float32":
        return float(np.max(np.abs(difference)) / (np.max(np.abs(y)) or 1.0))
    return float(np.linalg.norm(difference) / (np.linalg.norm(y) or 1.0))


def check_decode(shape: Shape, interpret: bool = False) -> Iterator[Check]:
    """Checks a step of decoding in both dtypes and with resets."""
    rng = np.random.default_rng(0)
    shape = shape._replace(length=1)
    example, reset = make_example(rng, shape), rng.random((shape.batch, 1)) < 0.3
    for dtype in DTYPES:
        rounded = in_dtype(example, dtype)
        wanted = {n: z for n, z in oracle(rounded, ~np.zeros_like(reset), reset).items() if n in ("y", "s_T")}

        def run(rounded: Example = rounded) -> dict[str, Array]:
            vectors = (jnp.asarray(rounded.inputs[name])[:, 0] for name in VECTORS)
            token = Token(*vectors, reset=jnp.asarray(reset)[:, 0])
            y, s = jax.jit(partial(decode.gpu_step, interpret=interpret))(token, jnp.asarray(rounded.inputs["s0"]))
            return {"y": y[:, None], "s_T": s}

        candidate = Candidate("decode", dtype, lambda *x: x[:2])
        yield checked(candidate, shape, "model", run, wanted)
