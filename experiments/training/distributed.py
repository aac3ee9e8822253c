"""The processes and devices of a run: JAX's own multi-controller runtime, started where there are several hosts, and
the mesh over all devices.

Every process runs the same program. The first one alone prints and writes files; the output folder is shared.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from experiments.config.overrides import UsageError
from experiments.config.schema import MeshConfig
from experiments.training import connection
from rwkv7_jax import sharding

T = TypeVar("T")
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@contextmanager
def session(config: MeshConfig) -> Iterator[Mesh | None]:
    """Connects all processes and sets the mesh within `with`; None on one device, where none is needed.

    Raises:
      UsageError: the sizes do not fit the devices, or the other processes were not found.
    """
    start(config)
    try:
        mesh = sharding.make_mesh(config.data, config.fsdp, config.tensor, config.sequence, devices=devices())
    except ValueError as error:
        raise UsageError(f"{error}; change --mesh.data, --mesh.fsdp, --mesh.tensor or --mesh.sequence") from None
    with silent(unless=is_lead()), connection.while_all_live():
        if mesh.size == 1:
            yield None
        else:
            with jax.set_mesh(mesh):
                yield mesh


@contextmanager
def asked_for(config: MeshConfig) -> Iterator[Mesh | None]:
    """Sets the mesh within `with` for commands of one process, which take one device unless a size says otherwise.

    Raises:
      UsageError: the sizes do not fit the devices, or there are other processes.
    """
    if (config.data, config.fsdp, config.tensor, config.sequence) == (1, 1, 1, 1):
        yield None
        return
    if any(value is not None for value in (config.coordinator, config.processes, config.process_id)):
        raise UsageError("mesh: this command runs in one process: leave coordinator, processes and process_id out")
    with session(config) as mesh:
        yield mesh


def devices() -> Sequence[object]:
    """Returns all devices of all processes."""
    return jax.devices()


def start(config: MeshConfig) -> None:
    """Connects the processes: as the settings say, else by what the cluster says of itself; alone, does nothing.

    Raises:
      UsageError: incomplete settings, or no connection.
    """
    given = (config.coordinator, config.processes, config.process_id)
    if any(value is not None for value in given) and None in given:
        raise UsageError("mesh.coordinator, mesh.processes and mesh.process_id belong together: give all three")
    if jax.distributed.is_initialized():
        return
    if config.coordinator is not None or on_cluster(os.environ):
        connection.connect(config)


def on_cluster(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment speaks of several processes: a TPU VM, GKE, several slices, SLURM or MPI."""
    if any(environment.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")):
        return True
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    if any(int(environment.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    on_cpu = environment.get("JAX_PLATFORMS", "").startswith("cpu")
    return not on_cpu and any(Path(name).exists() for name in TPU_DEVICES)


def is_lead() -> bool:
    """Returns whether this process is the one that prints and writes files."""
    return jax.process_index() == 0


def lead_first(act: Callable[[bool], T]) -> T:
    """Returns `act(True)` in the lead, and when that is done `act(False)` in every other process."""
    if jax.process_count() == 1:
        return act(True)
    done = act(True) if is_lead() else None
    multihost_utils.sync_global_devices("lead_first")
    return act(False) if done is None else done


@contextmanager
def silent(unless: bool) -> Iterator[None]:
    """Prints nothing, progress bars included."""
    if unless:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


class Spread:
    """How the global batches of a run lie on the devices. mesh: None is one device.

    Raises:
      UsageError: the rows cannot be cut evenly.
    """

    def __init__(self, mesh: Mesh | None, batch_size: int):
        self.mesh, self.batch_size = mesh, batch_size
        self.rows = list(range(batch_size)) if mesh is None else _rows_here(mesh, batch_size)
        """The rows of each batch that the devices of this process need."""
        self._place = {row: place for place, row in enumerate(self.rows)}

    def put(self, batch: PyTree) -> PyTree[Array]:
        """Puts the global batch on the devices, from this process's rows of it (leaves [len(rows), ...])."""
        if self.mesh is None:
            return jax.device_put(batch)
        spread = sharding.row_sharding(self.mesh)

        def one(leaf: np.ndarray) -> Array:
            def read(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                wanted = [self._place[row] for row in range(*index[0].indices(self.batch_size))]
                return np.asarray(leaf)[wanted][(slice(None), *index[1:])]

            return jax.make_array_from_callback((self.batch_size, *np.shape(leaf)[1:]), spread, read)

        return jax.tree.map(one, batch)


def check_length(mesh: Mesh | None, setting: str, length: int) -> None:
    """Checks that each device gets tokens of the longest rows.

    Raises:
      UsageError: rows of `length` tokens are shorter than the mesh; it names their setting.
    """
    count = sharding.token_devices(mesh)
    if length < count:
        raise UsageError(
            f"rows of {length} tokens cannot be cut over sequence = {count} devices: "
            f"change --{setting} or --mesh.sequence"
        )


def _rows_here(mesh: Mesh, batch_size: int) -> list[int]:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise UsageError(
            f"a batch of {batch_size} rows cannot be cut over data x fsdp = {parts} devices: "
            "change data.batch_size (batch_size) or the mesh (--mesh.sequence cuts the tokens of each row)"
        )
    places = sharding.row_sharding(mesh).addressable_devices_indices_map((batch_size,))
    slices = [index[0] for index in places.values() if index]
    return sorted({row for rows in slices for row in range(*rows.indices(batch_size))})


def describe(mesh: Mesh | None) -> str:
    """Returns the devices in words, for the line that a run begins with."""
    if mesh is None:
        return "1 device"
    sizes = " x ".join(f"{axis} {size}" for axis, size in sharding.named(tuple(mesh.shape.values())).items())
    hosts = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} devices ({sizes}){hosts}"
