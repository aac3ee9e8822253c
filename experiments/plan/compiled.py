"""What the compiler says of a step on a mesh: memory of one chip, what is sent, and what other meshes would hold."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from experiments.config.overrides import UsageError
from experiments.plan import hlo
from experiments.plan.refusal import out_of_memory
from experiments.plan.step import Step
from experiments.plan.topology import GIB, Topology, whole_hosts
from pallas_kernels.aot import nvidia
from rwkv7_jax import sharding


class Memory(NamedTuple):
    """Bytes on one chip. needed: all of it; where the compiler gave up, what it asked for, without the code; available:
    what the compiler gives a program, 0 where it does not say."""

    needed: int
    arguments: int = 0
    temporaries: int = 0
    code: int = 0
    available: int = 0


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

    refused: bool = False
    """Whether the compiler gave up, for want of memory."""

    @property
    def limit(self) -> int:
        """Bytes of a chip that a program may take."""
        return self.memory.available or self.topology.chip.memory

    @property
    def fits(self) -> bool:
        """Whether a chip holds what it needs."""
        return not self.refused and self.memory.needed <= self.limit


class Readable(Protocol):
    """A compiled program that can be read back."""

    def as_text(self) -> str | None:
        """Returns the optimised HLO."""
        ...


def devices(topology: Topology) -> list[object]:
    """Returns compile-only devices of JAX; call `topology.prepare` first.

    Raises:
      UsageError: the compiler for them is not installed.
    """
    jax.devices()
    try:
        if topology.chip.platform == "tpu":
            grid = "x".join(map(str, whole_hosts(topology)))
            found = topologies.get_topology_desc(f"{topology.kind}:{grid}", "tpu").devices
        else:
            config = nvidia.description(topology.kind, nvidia.TARGETS[topology.kind])
            shape = f"1x1x{topology.chips}"
            found = topologies.get_topology_desc("gpu", "cuda", target_config=config, topology=shape).devices
    except (RuntimeError, ImportError) as error:
        lines = " ".join(str(error).split())[:200]
        raise UsageError(f"no compiler for {topology.kind} ({lines}): pip install -e '.[aot]'") from None
    return list(found)[: topology.chips]


def compile_step(
    make: Callable[[Mesh], Step], topology: Topology, devices: Sequence[object], sizes: tuple[int, ...]
) -> tuple[Plan, Step]:
    """Compiles the step that `make` gives for a mesh over `devices`; one that does not fit is a result too.

    Args:
      make: mesh -> the step; called with the mesh set.
      topology: of `devices`, for the memory and the compiler's options.
      sizes: of the mesh's axes data, fsdp, tensor and sequence; one may be -1.

    Returns:
      (the plan, the step).

    Raises:
      UsageError: the compiler refused for another reason than the memory of a chip.
    """
    mesh = sharding.make_mesh(*sizes, devices=devices)
    start = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = make(mesh)
        lowered = step.function.lower(*step.arguments)  # pyright: ignore[reportFunctionMemberAccess]
    shape = tuple(mesh.shape[axis] for axis in sharding.AXES)
    tokens = step.batch_size * step.length
    with tempfile.TemporaryDirectory() as dump:
        try:
            compiled = lowered.compile(compiler_options=dump_options(topology, dump))
        except jax.errors.JaxRuntimeError as error:
            memory = asked_for(str(error), held(step.groups, mesh.shape))
            seconds = time.perf_counter() - start
            return Plan(topology, shape, tokens, memory, [], [], {}, 0, False, seconds, refused=True), step
        text = text_of(compiled, dump)
    told = compiled.memory_analysis()
    kept = told.output_size_in_bytes - told.alias_size_in_bytes
    parts = (told.argument_size_in_bytes, told.temp_size_in_bytes, told.generated_code_size_in_bytes)
    cost = {name: float(value) for name, value in (compiled.cost_analysis() or {}).items() if name in COSTS}
    moved, largest = hlo.collectives(text)
    seconds = time.perf_counter() - start
    memory = Memory(sum(parts) + kept, *parts)
    return Plan(topology, shape, tokens, memory, moved, largest, cost, kernels(text), bool(text), seconds), step


def dump_options(topology: Topology, folder: str) -> dict[str, str | bool]:
    """Returns the options that make the compiler itself write the program down."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if topology.chip.platform == "tpu" else {}


def text_of(compiled: Readable, folder: str) -> str:
    """Returns the program as the compiler wrote it to `folder`, else as JAX reads it back; empty if there is neither.

    JAX 0.10.2 cannot read large v5p programs back ("async-update instruction should have 1 operands").
    """
    written = sorted(Path(folder).glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size)
    try:
        return written[-1].read_text(encoding="utf-8") if written else compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        return ""


COSTS = ("flops", "bytes accessed")
KERNEL_CALLS = ("tpu_custom_call", "__gpu$xla.gpu.triton")


def kernels(text: str) -> int:
    """Counts the calls of hand-written kernels in an HLO text."""
    return sum(text.count(f'custom_call_target="{name}"') for name in KERNEL_CALLS)


def asked_for(message: str, arguments: int) -> Memory:
    """Returns what a step would need, from the compiler's refusal; what it does not say is left out.

    Raises:
      UsageError: it refused for another reason, which is quoted.
    """
    refusal = out_of_memory(message)
    if refusal is None:
        raise UsageError(f"the compiler refused the step: {' '.join(message.split())[:300]}")
    temporaries = refusal.temporaries or max(refusal.total - arguments, 0)
    return Memory(refusal.total or arguments + temporaries, arguments, temporaries, 0, refusal.available)


def held(groups: Mapping[str, PyTree], axis_sizes: Mapping[str, int]) -> int:
    """Returns the bytes of one chip's part of all arguments of a step on a mesh of these sizes."""
    return sum(
        part_bytes(leaf, spec, axis_sizes)
        for group in groups.values()
        for leaf, spec in zip(jax.tree.leaves(group), _specs(group, axis_sizes), strict=True)
    )


def part_bytes(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec, axis_sizes: Mapping[str, int]) -> int:
    """Returns the bytes of one chip's part of an array."""
    axes = [name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(leaf.shape) * leaf.dtype.itemsize // math.prod(axis_sizes[name] for name in axes)


class Option(NamedTuple):
    """Another mesh, and an estimate of the bytes that a chip would need."""

    mesh: tuple[int, ...]
    needed: int


def options(plan: Plan, step: Step) -> list[Option]:
    """Returns meshes that should fit and cut a row's tokens as the plan does, those that cut the weights least first.

    Arguments are counted exactly. Temporaries are taken to go with the sequences of a chip, which overstates those of
    meshes with a larger tensor axis and understates those of meshes with a smaller one.
    """
    data, fsdp, _, along = plan.mesh
    found = []
    for sizes in ((*outer, along) for outer in _factors(plan.topology.chips // along)):
        if step.batch_size % (sizes[0] * sizes[1]) or step.model.n_head % sizes[2]:
            continue
        axis_sizes: dict[str, int] = dict(zip(sharding.AXES, sizes, strict=True))
        temporaries = plan.memory.temporaries * data * fsdp / (sizes[0] * sizes[1])
        found.append(Option(sizes, int(held(step.groups, axis_sizes) + temporaries + plan.memory.code)))
    fitting = [option for option in found if option.needed <= plan.limit - GIB]
    return sorted(fitting, key=lambda option: (option.mesh[1] * option.mesh[2], option.mesh[2]))


def _specs(group: PyTree, axis_sizes: Mapping[str, int]) -> list[PartitionSpec]:
    specs = sharding.partitions(group, axis_sizes)
    return jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def _factors(count: int) -> list[tuple[int, int, int]]:
    powers = [1 << i for i in range(count.bit_length()) if count % (1 << i) == 0]
    return [(count // a // b, a, b) for a in powers for b in powers if count % (a * b) == 0]
