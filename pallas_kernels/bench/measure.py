"""What the benchmark and the check on a GPU share: tasks, errors against the scan, times, memory bandwidth."""

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels import decode
from pallas_kernels.bench.peers import Peer, of_jax
from pallas_kernels.bench.shapes import Example, Shape, make_example
from pallas_kernels.reference import Token, wkv7_scan

DECODE = "decode"
TASKS = ("forward", "forward+backward", "gradient of s0")
VECTORS = {"forward": 7, "forward+backward": 20, "gradient of s0": 12}
"""[B, T, H, N] arrays that a task reads or writes at least; the last two include the forward."""
OURS, THEIRS = 1e-2, 5e-2
"""Largest relative L2 error of any output with which a time is printed; bfloat16 in and out is about 3e-3."""
OURS_FLOAT32 = 1e-5
"""The same for our implementations on float32 inputs."""

Data: TypeAlias = tuple[dict[str, Array], Array, Array]
"""Inputs by name, and the cotangents of y and of the last state."""


class WrongResult(ValueError):
    """A result that does not agree with the scan."""


def make_data(shape: Shape, dtype: DTypeLike, seed: int = 0) -> Data:
    """Draws random inputs and cotangents; those of states are float32."""
    example: Example = make_example(np.random.default_rng(seed), shape)
    inputs = {n: jnp.asarray(z, jnp.float32 if n == "s0" else dtype) for n, z in example.inputs.items()}
    return inputs, jnp.asarray(example.dy, dtype), jnp.asarray(example.ds)


def expected(inputs: dict[str, Array], dy: Array, ds: Array) -> dict[str, tuple[np.ndarray, ...]]:
    """Computes each task, and decoding one token, by the scan in float32, for the first sequence and two heads."""
    part = {n: z[:1, :2] if n == "s0" else z[:1, :, :2] for n, z in inputs.items()}
    peer = of_jax("scan", wkv7_scan)
    with jax.default_matmul_precision("highest"):
        state = peer.prepare({n: z.astype(jnp.float32) for n, z in part.items()}, dy[:1, :, :2], ds[:1, :2])
        results = {task: (peer.run(state, task), peer.result(state))[1] for task in TASKS}
        one = [z[:, :1] if n != "s0" else z for n, z in part.items()]
        y, s = wkv7_scan(*(z.astype(jnp.float32) for z in one))
        return results | {DECODE: (np.asarray(y)[:, 0], np.asarray(s))}


def largest_error(result: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Returns the relative L2 error of the worst array, NaN if one has NaN; `wanted` has the first sequence and
    heads of `result`."""
    errors = []
    for x, y in zip(result, wanted, strict=True):
        part = x[tuple(slice(size) for size in y.shape)].astype(np.float64)
        errors.append(np.linalg.norm(part - y) / max(np.linalg.norm(y), 1e-30))
    return float(np.max(errors))


def best_seconds(start: Callable[[], object], wait: Callable[[], object], repeats: int = 5, runs: int = 10) -> float:
    """Measures seconds per run, of the best of `repeats` series of runs that do not wait for each other."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(runs):
            start()
        wait()
        best = min(best, (time.perf_counter() - begin) / runs)
    return best


def bandwidth(size: int = 1 << 28) -> float:
    """Measures bytes per second of reading and writing a large float32 array."""
    add = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(add(jnp.zeros(size, jnp.float32)))
    return 8 * size / best_seconds(lambda: add(x), lambda: jax.block_until_ready(add(x)))


def moved(task: str, shape: Shape, dtype: DTypeLike) -> int:
    """Counts the bytes that a task reads or writes at least; of states, those of decoding, which are most of it."""
    states = 8 * shape.batch * shape.heads * shape.key * shape.value
    if task == DECODE:
        return VECTORS["forward"] * _vector_bytes(shape._replace(length=1), dtype) + states
    return VECTORS[task] * _vector_bytes(shape, dtype)


def _vector_bytes(shape: Shape, dtype: DTypeLike) -> int:
    return shape.batch * shape.length * shape.heads * shape.key * jnp.dtype(dtype).itemsize


def decoders() -> list[Peer]:
    """Returns the ways to take one token on this machine: XLA's, and the kernel of an accelerator."""
    kernels = {"gpu": decode.gpu_step, "tpu": decode.tpu_step}
    here = [(n, step) for n, step in kernels.items() if n == jax.default_backend()]
    return [of_step(name, step) for name, step in [("xla", decode.xla_step), *here]]


def of_step(name: str, step: decode.Step) -> Peer:
    """Makes a peer that takes the first token of its inputs again and again, the states in place."""

    def prepare(inputs, dy, ds):
        token = Token(*(z[:, 0] for n, z in inputs.items() if n != "s0"), reset=None)
        return {"step": jax.jit(step, donate_argnums=1), "token": token, "result": (None, jnp.copy(inputs["s0"]))}

    def run(state, task):
        state["result"] = state["step"](state["token"], state["result"][1])

    def result(state):
        return tuple(np.asarray(z, np.float32) for z in state["result"])

    return Peer(name, prepare, run, lambda state: jax.block_until_ready(state["result"]), result)
