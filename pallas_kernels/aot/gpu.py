"""The GPU kernels compiled for a named NVIDIA GPU that is not attached: registers, spills, shared memory, time floor.

Needs the packages of the extra `aot` (a CUDA plugin of JAX without its libraries, and `ptxas`). XLA writes the PTX of
each kernel to a folder that has to be named before JAX starts, so each target is compiled in a process of its own.
"""

import glob
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from pallas_kernels.aot.table import COMPILED, Row, from_json


class Target(NamedTuple):
    """arch: as `ptxas` calls it; bandwidth: bytes per second of memory; the rest as in XLA's description of a GPU."""

    arch: str
    major: int
    bandwidth: float
    multiprocessors: int
    memory: int
    shared_memory: int
    clock_ghz: float


TARGETS = {
    "h100": Target("sm_90a", 9, 3.35e12, 132, 80 << 30, 232448, 1.98),
    "h200": Target("sm_90a", 9, 4.8e12, 132, 141 << 30, 232448, 1.98),
    "a100": Target("sm_80", 8, 2.039e12, 108, 80 << 30, 166912, 1.41),
}
"""From NVIDIA's data sheets of the SXM modules."""

PACKAGES = ("jax_plugins.xla_cuda13", "nvidia.cu13")


def missing() -> str | None:
    """One line that says what to install, or None if all is there."""
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"no {package}: compiling for NVIDIA GPUs needs `pip install -e '.[aot]'`"
    return None if _ptxas() else "no ptxas: compiling for NVIDIA GPUs needs `pip install nvidia-cuda-nvcc`"


def _ptxas() -> str | None:
    found = sorted(p for folder in sys.path for p in glob.glob(f"{folder}/nvidia/*/bin/ptxas"))
    return found[0] if found else None


def rows(target: str, shape: tuple[int, ...]) -> list[Row]:
    """One row per kernel and dtype for inputs of shape (B, T, H, N), compiled in a fresh process.

    Those of the Triton kernels too, if Triton is there.

    Raises:
        ValueError: an unknown target.
        FileNotFoundError: a package is missing.
    """
    if target not in TARGETS:
        raise ValueError(f"no GPU called {target!r}: choose one of {', '.join(TARGETS)}")
    if message := missing():
        raise FileNotFoundError(message)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "JAX_PLATFORMS": "",
            "TPU_SKIP_MDS_QUERY": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_FLAGS": f"--xla_dump_to={folder}",
            "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *filter(None, sys.path)]),
        }
        command = [sys.executable, "-m", "pallas_kernels.aot.gpu", target, folder, *map(str, shape)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for {target} ended with: {done.stderr.strip().splitlines()[-1]}")
    return from_json(done.stdout.splitlines()[-1])


def floor_bytes(kernel: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that have to move: each input once, each output once, and what the forward saves for the backward."""
    batch, length, heads, size = shape
    vector = batch * length * heads * size * (2 if dtype == "bfloat16" else 4)
    state = batch * heads * size * size * 4
    saved = vector * size // 64
    return {
        "forward": 7 * vector + 2 * state,
        "forward_saving": 7 * vector + 2 * state + saved,
        "backward": 13 * vector + 2 * state + saved,
        "state_backward": 5 * vector + 2 * state,
        "decode": 7 * vector // length + 2 * state,
    }[kernel]


def description(name: str, target: Target) -> str:
    """XLA's description of a GPU, as a text proto."""
    feature = "feature_extension: ACCELERATED_FEATURES" if target.major == 9 else ""
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {target.shared_memory + 1024} threads_per_core_limit: 2048
  core_count: {target.multiprocessors} fpus_per_core: {128 if target.major == 9 else 64}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(target.bandwidth)} l2_cache_size: {(50 if target.major == 9 else 40) << 20}
  clock_rate_ghz: {target.clock_ghz} device_memory_size: {target.memory}
  shared_memory_per_block_optin: {target.shared_memory}
  cuda_compute_capability {{ major: {target.major} {feature} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability {target.major}.0"
  device_address_bits: 64 name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""


def examine(ptx: str, arch: str) -> tuple[int, int]:
    """(registers per thread, bytes spilled, stores and loads) that `ptxas` reports of a PTX file."""
    command = [str(_ptxas()), f"-arch={arch}", "-v", ptx, "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", report)))
    return registers, spilled


def _programs(shape: tuple[int, ...], dtype: str) -> dict[str, tuple[Any, tuple]]:
    """Functions and abstract arguments by kernel name; log_w is of the same dtype as the rest."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import decode
    from pallas_kernels.chunked.layout import OpInputs
    from pallas_kernels.gpu.launch import Launch
    from pallas_kernels.reference import Token

    batch, _, heads, size = shape
    launch = Launch()
    x = jax.ShapeDtypeStruct(shape, dtype)
    inputs: Any = OpInputs(x, x, x, x, x, x, None)  # type: ignore[arg-type]
    state = jax.ShapeDtypeStruct((batch, heads, size, size), jnp.float32)
    one = jax.ShapeDtypeStruct((batch, heads, size), dtype)
    saved = jax.eval_shape(launch.forward_saving, inputs, state)[2]
    return {
        "forward": (launch.forward, (inputs, state)),
        "forward_saving": (launch.forward_saving, (inputs, state)),
        "backward": (launch.backward, (saved, x, state)),
        "state_backward": (launch.state_backward, (inputs, x, state)),
        "decode": (decode.gpu_step, (Token(*[one] * 6, None), state)),  # type: ignore[arg-type]
    }


def _compile(target: str, folder: str, shape: tuple[int, ...]) -> list[Row]:
    """In the process whose XLA writes to `folder`."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.devices()
    facts = TARGETS[target]
    topology: Any = topologies.get_topology_desc(
        "gpu", "cuda", target_config=description(target, facts), topology="1x1x1"
    )
    here = NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())
    out = []
    for dtype in ("bfloat16", "float32"):
        for name, (function, arguments) in _programs(shape, dtype).items():
            floor_ms = 1e3 * floor_bytes(name, shape, dtype) / facts.bandwidth
            row = Row(name, target, shape, dtype, COMPILED, floor_ms=floor_ms)
            for old in glob.glob(f"{folder}/*"):
                os.remove(old)
            try:
                jax.jit(function, in_shardings=here, out_shardings=here).lower(*arguments).compile()
            except Exception as error:  # the message is the result
                out.append(row._replace(status=" ".join(str(error).split())[:200]))
                continue
            found = [path for path in glob.glob(f"{folder}/*.ptx") if ".entry wkv7_" in pathlib.Path(path).read_text()]
            registers, spills = map(max, zip(*(examine(path, facts.arch) for path in found), strict=True))
            out.append(row._replace(registers=registers, spills=spills, memory=_shared_memory(folder)))
    return out


def _shared_memory(folder: str) -> int | None:
    """Bytes of shared memory that the kernel is launched with, from XLA's record of the last compilation."""
    records = (pathlib.Path(path).read_text() for path in glob.glob(f"{folder}/*thunk_sequence*"))
    return max((int(size) for text in records for size in re.findall(r"shared_memory: (\d+)", text)), default=None)


if __name__ == "__main__":
    from pallas_kernels.aot import triton

    _target, _folder, *_sizes = sys.argv[1:]
    _shape = tuple(map(int, _sizes))
    _rows = _compile(_target, _folder, _shape) + (triton.rows(_target, _shape) if triton.missing() is None else [])
    print(json.dumps([row._asdict() for row in _rows]))
