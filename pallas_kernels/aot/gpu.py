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
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import decode
from pallas_kernels.aot import nvidia, triton
from pallas_kernels.aot.table import COMPILED, Row, from_json
from pallas_kernels.gpu.launch import Launch
from pallas_kernels.reference import Token

LAUNCHED = re.compile(r"\b(wkv7_\w+) .*shared_memory: (\d+)")
"""Name and shared memory of a kernel in XLA's record of what it launches."""
PACKAGES = ("jax_plugins.xla_cuda13", "nvidia.cu13")


def missing() -> str | None:
    """Returns one line that says what to install, or None if all is there."""
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"no {package}: compiling for NVIDIA GPUs needs `pip install -e '.[aot]'`"
    return None if nvidia.ptxas() else "no ptxas: compiling for NVIDIA GPUs needs `pip install nvidia-cuda-nvcc`"


def rows(target: str, cases: Sequence[nvidia.Case]) -> list[Row]:
    """Compiles every kernel and dtype in a fresh process, those of Triton too if Triton is there.

    Args:
      target: a key of `nvidia.TARGETS`.
      cases: inputs to compile for.

    Raises:
      ValueError: an unknown target.
      FileNotFoundError: a package is missing.
    """
    if target not in nvidia.TARGETS:
        raise ValueError(f"no GPU called {target!r}: choose one of {', '.join(nvidia.TARGETS)}")
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
        command = [sys.executable, "-m", "pallas_kernels.aot.gpu", target, folder, json.dumps(cases)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"compiling for {target} ended with: {done.stderr.strip().splitlines()[-1]}")
    return from_json(done.stdout.splitlines()[-1])


def _programs(case: nvidia.Case, dtype: str) -> dict[str, tuple[Callable[..., object], tuple[object, ...]]]:
    """Functions and abstract arguments by kernel name."""
    batch, _, heads, size = case.shape
    given = triton.inputs(case, dtype)
    state = jax.ShapeDtypeStruct((batch, heads, size, size), jnp.float32)
    one = jax.ShapeDtypeStruct((batch, heads, size), dtype)
    found: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {}
    for suffix, launch in (("", Launch()), (nvidia.WIDE, Launch(wide=True))):
        saved = jax.eval_shape(launch.forward_saving, given, state)[2]
        found |= {
            f"forward{suffix}": (launch.forward, (given, state)),
            f"forward_saving{suffix}": (launch.forward_saving, (given, state)),
            f"backward{suffix}": (launch.backward, (saved, given.v, state)),
            f"state_backward{suffix}": (launch.state_backward, (given, given.v, state)),
        }
    step = Token(*[one] * 6, None)  # type: ignore[arg-type]
    return found if case.resets else found | {"decode": (decode.gpu_step, (step, state))}


def _compile(target: str, folder: str, cases: Sequence[nvidia.Case]) -> list[Row]:
    """Compiles all kernels in the process whose XLA writes to `folder`."""
    jax.devices()
    facts = nvidia.TARGETS[target]
    config = nvidia.description(target, facts)
    topology = topologies.get_topology_desc("gpu", "cuda", target_config=config, topology="1x1x1")
    placed = NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())
    out = []
    for case, dtype in ((one, dtype) for one in cases for dtype in one.dtypes):
        for name, (function, arguments) in _programs(case, dtype).items():
            floor_ms = 1e3 * nvidia.floor_bytes(name, case.shape, dtype) / facts.bandwidth
            row = Row(name, target, case.shape, dtype, COMPILED, floor_ms=floor_ms, resets=case.resets)
            for old in glob.glob(f"{folder}/*"):
                os.remove(old)
            try:
                with jax.sharding.use_abstract_mesh(placed.mesh.abstract_mesh):  # names the GPU to Pallas
                    lowered = jax.jit(function, in_shardings=placed, out_shardings=placed).lower(*arguments)
                lowered.compile()
            except Exception as error:  # the message is the result
                out.append(row._replace(status=" ".join(str(error).split())[:200]))
                continue
            out += nvidia.joined(row, _kernels(folder, facts), facts)
    return out


def _kernels(folder: str, facts: nvidia.Target) -> list[tuple[nvidia.Kernel, int]]:
    """The kernels of the last compilation in the order in which they run, and the shared memory that each is launched
    with, from XLA's record."""
    found = {
        kernel.name: kernel
        for path in glob.glob(f"{folder}/*.ptx")
        if ".entry wkv7_" in pathlib.Path(path).read_text(encoding="utf-8")
        for kernel in nvidia.examine(path, facts.arch)
    }
    records = [pathlib.Path(path).read_text(encoding="utf-8") for path in glob.glob(f"{folder}/*thunk_sequence*")]
    if not records:
        raise FileNotFoundError(f"XLA wrote no record of what it launches among {sorted(os.listdir(folder))}"[:500])
    launched = max(map(LAUNCHED.findall, records), key=len)
    return [(found[name]._replace(name=name.removeprefix("wkv7_")), int(memory)) for name, memory in launched]


def _main(arguments: Sequence[str]) -> None:
    """Prints the rows of one target as JSON. arguments: target, folder that XLA writes to, cases as JSON."""
    target, folder, text = arguments
    cases = [nvidia.Case(tuple(shape), *rest) for shape, *rest in json.loads(text)]
    found = _compile(target, folder, cases)
    for case in cases if triton.missing() is None else ():
        found += triton.rows(target, case)
    print(json.dumps([row._asdict() for row in found]))


if __name__ == "__main__":
    _main(sys.argv[1:])
