"""The TPU kernels compiled for a named TPU that is not attached: VMEM, instruction bundles, time bounds.

Needs `libtpu` (the extra `aot`). The compiler writes its schedule to a folder that has to be named before JAX starts,
so each kernel is compiled in a process of its own. A bundle takes a cycle or more: their number is a lower bound.
"""

import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from pallas_kernels.aot.table import COMPILED, Row
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.tpu import rules
from pallas_kernels.tpu.packing import LANES


class Target(NamedTuple):
    """topology: as JAX names a small slice; cores: that share the grid of a kernel; bandwidth: bytes per second."""

    topology: str
    cores: int
    clock: float
    bandwidth: float


TARGETS = {
    "v5e": Target("v5e:2x2", 1, 1.50e9, 0.819e12),
    "v5p": Target("v5p:2x2x1", 2, 1.75e9, 2.765e12),
    "v6e": Target("v6e:2x2", 1, 1.75e9, 1.64e12),
}
"""Bandwidths from Google's pages of the chips; clocks from the peak rates there over the size of the matrix units."""

KERNELS = ("forward", "forward_saving", "backward", "state_backward")
WIDE_KERNELS = ("forward_wide", "backward_wide", "state_backward_wide")
"""Those for log_w down to -20, which are compiled where they are named."""
DTYPES = ("bfloat16", "float32")


def missing() -> str | None:
    """Returns one line that says what to install, or None if all is there."""
    if importlib.util.find_spec("libtpu"):
        return None
    return "no libtpu: compiling for TPUs needs `pip install -e '.[aot]'`"


def rows(
    target: str,
    shape: tuple[int, ...],
    *,
    kernels: tuple[str, ...] = KERNELS,
    dtypes: tuple[str, ...] = DTYPES,
) -> list[Row]:
    """Compiles every kernel and dtype for inputs of shape (B, T, H, N), each in a fresh process.

    Raises:
        ValueError: an unknown target, or an N that has no kernel.
        FileNotFoundError: libtpu is missing.
    """
    if target not in TARGETS:
        raise ValueError(f"no TPU called {target!r}: choose one of {', '.join(TARGETS)}")
    if shape[3] not in (64, 128):
        raise ValueError(f"no TPU kernel for heads of {shape[3]}: N must be 64 or 128")
    if message := missing():
        raise FileNotFoundError(message)
    return [row(kernel, target, shape, dtype) for dtype in dtypes for kernel in kernels]


def row(kernel: str, target: str, shape: tuple[int, ...], dtype: str) -> Row:
    """Returns what the compiler says of one kernel."""
    chip = TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pallas_kernels.aot.tpu", kernel, chip.topology, dtype, *map(str, shape)]
        done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
            return Row(kernel, target, shape, dtype, lines[-1].strip())
        counts = json.loads(done.stdout.splitlines()[-1])
        schedule = _dump(folder, kernel, "analysis_final_bundles")
        bundles = int(re.findall(r"total scheduled bundles:\s*(\d+)", schedule)[0])
        sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+)", _dump(folder, kernel, "post-ra"))
    return Row(
        kernel,
        target,
        shape,
        dtype,
        COMPILED,
        memory=sum(int(size, 16) for size in sizes),
        bundles=bundles,
        bound_ms=1e3 * bundles * counts["steps"] / chip.cores / chip.clock,
        floor_ms=1e3 * counts["bytes"] / chip.bandwidth,
    )


def _environment(folder: str) -> dict[str, str]:
    """No search for a TPU, and a folder for what the compiler has to say."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *filter(None, sys.path)]),
    }


def _dump(folder: str, kernel: str, stage: str) -> str:
    """The compiler's text of a kernel after a stage."""
    pattern = re.compile(rf"-wkv7_{kernel}(\.\d+)?-\d+-(schedule-)?{stage}\.txt$")
    found = [path for path in pathlib.Path(folder).iterdir() if pattern.search(path.name)]
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} dumps of {kernel} after {stage}: another libtpu than the known ones?")
    return found[0].read_text(errors="replace", encoding="utf-8")


def _compile(kernel: str, topology: str, dtype: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Compiles a kernel on arrays [B, T, H * N], as a model has them; returns its grid's steps and the bytes moved."""
    batch, length, heads, size = shape
    rule, wide = kernel.removesuffix("_wide"), kernel.endswith("_wide")
    device = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices[0]
    unit = 256 if device.device_kind.startswith(rules.UNITS_OF_256) else LANES
    flat = jax.ShapeDtypeStruct((batch, length, heads * size), dtype)
    state = jax.ShapeDtypeStruct((batch, heads, size, size), jnp.float32)
    x = OpInputs(flat, flat, flat, flat, flat, flat, None)  # type: ignore[arg-type]

    def by_head(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda z: z.reshape(batch, length, heads, size) if z.ndim == 3 else z, tree)

    def run(*args: PyTree) -> PyTree:
        results = getattr(rules, rule)(*by_head(args), wide=wide, unit=unit)
        return jax.tree.map(lambda z: z.reshape(batch, length, -1) if z.shape[1:2] == (length,) else z, results)

    if rule == "backward":
        made = jax.eval_shape(lambda *args: rules.forward_saving(*by_head(args))[2], x, state)
        saved = made._replace(inputs=x, u=flat)
        args = (saved, flat, state)
    else:
        args = (x, flat, state) if rule == "state_backward" else (x, state)
    args = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype, sharding=SingleDeviceSharding(device)), args)
    traced = jax.jit(run).trace(*args)
    traced.lower().compile()
    outputs = jax.eval_shape(run, *args)
    if rule == "forward_saving":
        outputs = (*outputs[:2], outputs[2].states, outputs[2].u)
    moved = [*jax.tree.leaves(args), *jax.tree.leaves(outputs)]
    unread = 2 * flat.size * flat.dtype.itemsize if rule == "state_backward" else 0
    return {"steps": _steps(traced.jaxpr.jaxpr), "bytes": sum(z.size * z.dtype.itemsize for z in moved) - unread}


def _steps(program: jax.extend.core.Jaxpr) -> int:
    """The steps of the grid of the only kernel in a program."""
    (kernel,) = [equation for equation in program.eqns if equation.primitive.name == "pallas_call"]
    return math.prod(kernel.params["grid_mapping"].grid)


if __name__ == "__main__":
    print(json.dumps(_compile(sys.argv[1], sys.argv[2], sys.argv[3], tuple(int(n) for n in sys.argv[4:]))))
