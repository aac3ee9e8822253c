"""NVIDIA GPUs that need not be attached: their data, XLA's description of them, and what `ptxas` says of a kernel."""

import glob
import os
import re
import subprocess
import sys
from typing import NamedTuple


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

DTYPES = ("bfloat16", "float32")


def description(name: str, target: Target) -> str:
    """Returns XLA's description of a GPU, as a text proto."""
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
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "NVIDIA {name.upper()}"
"""


def floor_bytes(kernel: str, shape: tuple[int, ...], dtype: str) -> int:
    """Counts the bytes that have to move: each input and output once, and what the forward saves for the backward."""
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


def ptxas() -> str | None:
    """Returns the path of NVIDIA's assembler, or None where it is not installed."""
    found = sorted(p for folder in sys.path for p in glob.glob(f"{folder}/nvidia/*/bin/ptxas"))
    return found[0] if found else None


def examine(ptx: str, arch: str) -> tuple[int, int]:
    """Returns (registers per thread, bytes spilled, stores and loads) that `ptxas` reports of a PTX file."""
    command = [str(ptxas()), f"-arch={arch}", "-v", ptx, "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", report)))
    return registers, spilled
