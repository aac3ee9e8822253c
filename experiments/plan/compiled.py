"""What the compiler says of a step on a mesh: memory of one chip, what is sent, and what other meshes would hold."""

import math
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from experiments.plan import hlo
from experiments.plan.step import Step
from experiments.plan.topology import GIB, Topology
from rwkv7_jax import sharding


class Memory(NamedTuple):
    """Bytes on one chip. needed: all of it; where the compiler gave up, what it asked for, the parts unknown."""

    needed: int
    arguments: int = 0
    temporaries: int = 0
    code: int = 0


class Plan(NamedTuple):
    """A step compiled for a mesh."""

    topology: Topology
    mesh: tuple[int, ...]
    tokens: int
    memory: Memory
    collectives: list[hlo.Moved]
    largest: list[hlo.Largest]
    cost: dict[str, float]
    """The compiler's own figures of one chip, each loop's body counted once; empty where it gives none."""
    kernels: int
    """Calls of hand-written kernels in the program."""
    read: bool
    """Whether the program could be read for collectives and kernels."""
    seconds: float
    """That compiling took here."""

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.topology.chip.memory


def compile_step(
    make: Callable[[Mesh], Step], topology: Topology, devices: list[Any], sizes: tuple[int, ...]
) -> tuple[Plan, Step]:
    """Compile the step that `make` gives for a mesh over `devices`; one that does not fit is a result too.

    Raises: whatever the compiler says beside that.
    """
    mesh = sharding.make_mesh(*sizes, devices=devices)
    start = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = make(mesh)
        lowered = step.function.lower(*step.arguments)  # pyright: ignore[reportFunctionMemberAccess]
    shape = tuple(mesh.shape[axis] for axis in sharding.AXES)
    with tempfile.TemporaryDirectory() as dump:
        try:
            compiled = lowered.compile(compiler_options=dump_options(topology, dump))
        except jax.errors.JaxRuntimeError as error:
            memory = Memory(asked_for(str(error)), _held(step, mesh))
            return Plan(
                topology, shape, step.rows * step.length, memory, [], [], {}, 0, False, time.perf_counter() - start
            ), step
        text = text_of(compiled, dump)
    told = compiled.memory_analysis()
    kept = told.output_size_in_bytes - told.alias_size_in_bytes
    parts = (told.argument_size_in_bytes, told.temp_size_in_bytes, told.generated_code_size_in_bytes)
    cost = {name: float(value) for name, value in (compiled.cost_analysis() or {}).items() if name in COSTS}
    moved, largest = hlo.collectives(text)
    seconds = time.perf_counter() - start
    memory = Memory(sum(parts) + kept, *parts)
    tokens = step.rows * step.length
    return Plan(topology, shape, tokens, memory, moved, largest, cost, kernels(text), bool(text), seconds), step


def dump_options(topology: Topology, folder: str) -> dict[str, Any]:
    """Compiler options that make the compiler itself write the program down."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if topology.chip.platform == "tpu" else {}


def text_of(compiled: Any, folder: str) -> str:
    """The compiled program as the compiler wrote it to `folder`, or else as JAX reads it back, which 0.10.2 cannot for
    large v5p programs ("async-update instruction should have 1 operands"); empty if there is neither."""
    written = sorted(Path(folder).glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size)
    try:
        return written[-1].read_text() if written else compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return ""


COSTS = ("flops", "bytes accessed")
KERNEL_CALLS = ("tpu_custom_call", "__gpu$xla.gpu.triton")


def kernels(text: str) -> int:
    """How many calls of hand-written kernels stand in an HLO text."""
    return sum(text.count(f'custom_call_target="{name}"') for name in KERNEL_CALLS)


def asked_for(message: str) -> int:
    """Bytes that a step would need, from the compiler's refusal.

    Raises: RuntimeError with its first line if it refused for another reason.
    """
    found = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", message)
    if not found:
        raise RuntimeError(" ".join(message.split())[:300])
    return int(float(found[1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2]])


def _held(tree: Any, mesh: Mesh) -> int:
    """Bytes of one chip's part of all arguments of a step."""
    return sum(part_bytes(leaf, leaf.sharding.spec, mesh.shape) for leaf in jax.tree.leaves(tree.arguments))


def part_bytes(leaf: Any, spec: PartitionSpec, axis_sizes: Any) -> int:
    """Bytes of one chip's part of an array."""
    axes = [name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(leaf.shape) * leaf.dtype.itemsize // math.prod(axis_sizes[name] for name in axes)


class Option(NamedTuple):
    """Another mesh, and an estimate of the bytes that a chip would need."""

    mesh: tuple[int, ...]
    needed: int


def options(plan: Plan, step: Step) -> list[Option]:
    """Meshes that should fit, those that cut the weights least first.

    Arguments are counted exactly. Temporaries are taken to go with the rows of a chip, which overstates those of meshes
    with a larger tensor axis and understates those of meshes with a smaller one.
    """
    data, fsdp, _ = plan.mesh
    found = []
    for sizes in _factors(plan.topology.chips):
        if step.rows % (sizes[0] * sizes[1]) or step.model.n_head % sizes[2]:
            continue
        axis_sizes = dict(zip(sharding.AXES, sizes, strict=True))
        held = sum(
            part_bytes(leaf, spec, axis_sizes)
            for group in step.groups.values()
            for leaf, spec in zip(jax.tree.leaves(group), _specs(group, axis_sizes), strict=True)
        )
        temporaries = plan.memory.temporaries * data * fsdp / (sizes[0] * sizes[1])
        found.append(Option(sizes, int(held + temporaries + plan.memory.code)))
    fitting = [option for option in found if option.needed <= plan.topology.chip.memory - GIB]
    return sorted(fitting, key=lambda option: (option.mesh[1] * option.mesh[2], option.mesh[2]))


def _specs(group: Any, axis_sizes: Any) -> list[PartitionSpec]:
    specs = sharding.partitions(group, axis_sizes)
    return jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def _factors(count: int) -> list[tuple[int, int, int]]:
    powers = [1 << i for i in range(count.bit_length()) if count % (1 << i) == 0]
    return [(count // a // b, a, b) for a in powers for b in powers if count % (a * b) == 0]
