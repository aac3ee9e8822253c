"""NVIDIA GPUs that need not be attached: their data, XLA's description of them, and what `ptxas` says of a kernel."""

import glob
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels.aot.table import Row


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

WIDE = "_wide"
"""Ends the names of the rules for log_w down to -20."""
DTYPES = ("bfloat16", "float32")


class Case(NamedTuple):
    """What kernels are compiled for: (B, T, H, N) of the inputs, whether there are resets, dtypes."""

    shape: tuple[int, ...]
    resets: bool = False
    dtypes: tuple[str, ...] = DTYPES


MAIN = Case((8, 4096, 32, 64))
"""The size of the documentation."""
SMALL = Case((8, 4096, 32, 32), dtypes=("bfloat16",))
"""Smaller heads."""
CASES = tuple(case._replace(resets=resets) for case in (MAIN, SMALL) for resets in (False, True))
"""Those of the committed tables."""


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


def named(target: str) -> AbstractContextManager[object]:
    """Names the GPU that programs are compiled for to whatever chooses kernels by it."""
    kind = AbstractDevice(f"NVIDIA {target.upper()}", TARGETS[target].multiprocessors, "gpu")
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=kind)
    return jax.sharding.use_abstract_mesh(mesh)


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
    }[kernel.removesuffix(WIDE)]


def ptxas() -> str | None:
    """Returns the path of NVIDIA's assembler, or None where it is not installed."""
    found = sorted(p for folder in sys.path for p in glob.glob(f"{folder}/nvidia/*/bin/ptxas"))
    return found[0] if found else None


class Kernel(NamedTuple):
    """What the assembler reports of one kernel, and what its PTX has, counted once wherever it stands.

    registers: per thread; spills: bytes, stores and loads; shared_loads, shared_stores: instructions, those for whole
    matrices among them; async_copies: instructions that copy to shared memory behind the program's back.
    """

    name: str
    warps: int
    registers: int
    spills: int
    barriers: int
    shared_loads: int
    shared_stores: int
    async_copies: int

    def blocks(self, target: Target, memory: int) -> int:
        """Returns how many programs with this many bytes of shared memory a multiprocessor runs at once."""
        by_registers = (1 << 16) // (32 * self.warps * (-(-self.registers // 8) * 8))
        by_memory = (target.shared_memory + RESERVED) // (memory + RESERVED)
        return min(by_registers, by_memory, 64 // self.warps, 32)


RESERVED = 1024
"""Bytes of shared memory that the system takes for each program."""
COUNTED = {
    "barriers": r"\b(?:bar|barrier)(?:\.cta)?\.sync\b",
    "shared_loads": r"\bld\.shared\b|\bldmatrix\b",
    "shared_stores": r"\bst\.shared\b|\bstmatrix\b",
    "async_copies": r"\bcp\.async\.(?:ca|cg|bulk)\b",
}
"""Patterns of instructions in PTX."""


def examine(ptx: str, arch: str) -> list[Kernel]:
    """Returns what `ptxas` reports of each kernel of a PTX file, and what is counted in it."""
    command = [str(ptxas()), f"-arch={arch}", "-v", ptx, "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stderr
    reports = _named(r"Compiling entry function '(\w+)'", report)
    bodies = _named(r"\.entry\s+(\w+)", pathlib.Path(ptx).read_text(encoding="utf-8"))
    return [_kernel(name, body, reports[name]) for name, body in bodies.items()]


def _named(pattern: str, text: str) -> dict[str, str]:
    """What follows each match, by the name in the match."""
    _, *parts = re.split(pattern, text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def joined(row: Row, found: Sequence[tuple[Kernel, int]], target: Target) -> list[Row]:
    """Returns the row of a rule with what was counted in all of its kernels, and a row for each if there are several.

    found: each kernel, and its bytes of shared memory. Of registers, memory and blocks the worst kernel's count.
    """
    parts = [
        row._replace(
            kernel=f"{row.kernel}: {kernel.name}", floor_ms=None, memory=memory, registers=kernel.registers,
            blocks=kernel.blocks(target, memory), warps=kernel.warps,
            **{key: getattr(kernel, key) for key in ("spills", *COUNTED)},
        )
        for kernel, memory in found
    ]  # fmt: skip
    if len(parts) == 1:
        return [parts[0]._replace(kernel=row.kernel, floor_ms=row.floor_ms)]
    worst: dict[str, int] = {key: max(getattr(part, key) for part in parts) for key in ("memory", "registers")}
    worst["blocks"] = min(part.blocks or 0 for part in parts)
    total = {key: sum(getattr(part, key) for part in parts) for key in ("spills", *COUNTED)}
    return [row._replace(**worst, **total), *parts]


def _kernel(name: str, body: str, report: str) -> Kernel:
    threads = re.search(r"\.(?:req|max)ntid (\d+)", body)
    return Kernel(
        name,
        warps=int(threads[1]) // 32 if threads else 1,
        registers=max(map(int, re.findall(r"Used (\d+) registers", report))),
        spills=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        **{key: len(re.findall(pattern, body)) for key, pattern in COUNTED.items()},
    )
