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
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.launch import Launch
from pallas_kernels.reference import Token

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


def rows(target: str, shape: tuple[int, ...]) -> list[Row]:
    """Compiles every kernel and dtype in a fresh process, those of Triton too if Triton is there.

    Args:
      target: a key of `nvidia.TARGETS`.
      shape: (B, T, H, N) of the inputs.

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
        command = [sys.executable, "-m", "pallas_kernels.aot.gpu", target, folder, *map(str, shape)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"compiling for {target} ended with: {done.stderr.strip().splitlines()[-1]}")
    return from_json(done.stdout.splitlines()[-1])


def _programs(shape: tuple[int, ...], dtype: str) -> dict[str, tuple[Callable[..., object], tuple[object, ...]]]:
    """Functions and abstract arguments by kernel name; log_w is of the same dtype as the rest."""
    batch, _, heads, size = shape
    launch = Launch()
    x = jax.ShapeDtypeStruct(shape, dtype)
    inputs = OpInputs(x, x, x, x, x, x, None)  # type: ignore[arg-type]
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
    """Compiles all kernels in the process whose XLA writes to `folder`."""
    jax.devices()
    facts = nvidia.TARGETS[target]
    config = nvidia.description(target, facts)
    topology = topologies.get_topology_desc("gpu", "cuda", target_config=config, topology="1x1x1")
    placed = NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())
    out = []
    for dtype in nvidia.DTYPES:
        for name, (function, arguments) in _programs(shape, dtype).items():
            floor_ms = 1e3 * nvidia.floor_bytes(name, shape, dtype) / facts.bandwidth
            row = Row(name, target, shape, dtype, COMPILED, floor_ms=floor_ms)
            for old in glob.glob(f"{folder}/*"):
                os.remove(old)
            try:
                with jax.sharding.use_abstract_mesh(placed.mesh.abstract_mesh):  # names the GPU to Pallas
                    lowered = jax.jit(function, in_shardings=placed, out_shardings=placed).lower(*arguments)
                lowered.compile()
            except Exception as error:  # the message is the result
                out.append(row._replace(status=" ".join(str(error).split())[:200]))
                continue
            found = [
                path
                for path in glob.glob(f"{folder}/*.ptx")
                if ".entry wkv7_" in pathlib.Path(path).read_text(encoding="utf-8")
            ]
            registers, spills = map(max, zip(*(nvidia.examine(path, facts.arch) for path in found), strict=True))
            out.append(row._replace(registers=registers, spills=spills, memory=_shared_memory(folder)))
    return out


def _shared_memory(folder: str) -> int | None:
    """Bytes of shared memory that the kernel is launched with, from XLA's record of the last compilation."""
    records = (pathlib.Path(path).read_text(encoding="utf-8") for path in glob.glob(f"{folder}/*thunk_sequence*"))
    return max((int(size) for text in records for size in re.findall(r"shared_memory: (\d+)", text)), default=None)


def _main(arguments: Sequence[str]) -> None:
    """Prints the rows of one target as JSON. arguments: target, folder that XLA writes to, B, T, H, N."""
    target, folder, *sizes = arguments
    shape = tuple(map(int, sizes))
    found = _compile(target, folder, shape) + (triton.rows(target, shape) if triton.missing() is None else [])
    print(json.dumps([row._asdict() for row in found]))


if __name__ == "__main__":
    _main(sys.argv[1:])
