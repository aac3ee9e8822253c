"""A plan as text and as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from experiments.plan.advice import Advice
from experiments.plan.compiled import Option, Plan, part_bytes
from experiments.plan.step import Step
from experiments.plan.topology import GIB
from rwkv7_jax import sharding
from rwkv7_jax.flops import PEAK_FLOPS


class Label(NamedTuple):
    """What was planned, as its JSON names it."""

    config: str
    size: str | None = None
    """A released size, or None for the config's own model."""
    settings: Sequence[str] = ()
    """Overrides of the config."""


def _unread(plan: Plan) -> str:
    """Why nothing is known of the program."""
    return "not known, there is no program" if plan.refused else "not known, JAX could not read the program back"


def text(plan: Plan, step: Step, better: Sequence[Option], changes: Sequence[Advice]) -> str:
    """Returns the plan for people.

    Args:
      plan: what the compiler says.
      step: what was compiled.
      better: other meshes.
      changes: what would make it fit.
    """
    chip = plan.topology.chip
    own = step.flops / plan.topology.chips
    lines = [
        f"{plan.topology.name}: {plan.topology.chips} chips of {chip.memory / GIB:.0f} GiB, mesh {mesh(plan.mesh)}, "
        f"{plan.tokens} tokens a step",
        *_verdict(plan),
        *_changes(plan, changes),
        f"compiled in {plan.seconds:.0f} s; hand-written kernels in it: {plan.kernels if plan.read else _unread(plan)}",
        f"model FLOPs of a chip: {own:.3g}, {1e3 * own / PEAK_FLOPS[chip.kind]:.1f} ms at its peak rate",
    ]
    lines += [f"compiler's {name}, loop bodies counted once: {value:.4g}" for name, value in plan.cost.items()]
    lines += ["", "sent in one step, bytes of the results on one chip:"]
    for moved, largest in zip(plan.collectives, plan.largest, strict=False):
        lines.append(f"  {moved.kind:<20} {moved.count:>6} x  {gib(moved.bytes):>12}   largest {gib(largest.bytes)}")
    lines += [] if plan.collectives else ["  nothing"] if plan.read else [f"  {_unread(plan)}"]
    lines += ["", "partitions:"]
    lines += [f"  {line}" for line in partition_lines(step, sharding.named(plan.mesh))]
    named = [option for option in better if option.mesh != plan.mesh][:3]
    if named:
        lines += ["", "meshes that should fit, those that cut the weights least first (estimates):"]
        lines += [f"  {mesh(option.mesh)}: about {gib(option.needed)} a chip" for option in named]
    return "\n".join(lines)


def _verdict(plan: Plan) -> list[str]:
    """Whether it fits, and by how much."""
    memory, left = plan.memory, (plan.limit - plan.memory.needed) / GIB
    if plan.fits:
        parts = f"arguments {gib(memory.arguments)}, temporaries {gib(memory.temporaries)}, code {gib(memory.code)}"
        return [f"a chip needs {gib(memory.needed)} ({parts}): FITS, {left:.2f} GiB left"]
    limit = f"{gib(plan.limit)} that a program may take" if memory.available else gib(plan.limit)
    if plan.refused and not memory.temporaries:
        return [f"a chip needs more than {limit}: DOES NOT FIT; the arguments alone are {gib(memory.arguments)}"]
    parts = f"arguments {gib(memory.arguments)}, temporaries {gib(memory.temporaries)}"
    return [f"a chip needs {gib(memory.needed)} ({parts}) of {limit}: DOES NOT FIT, {-left:.2f} GiB too much"]


def _changes(plan: Plan, changes: Sequence[Advice]) -> list[str]:
    """What would make it fit."""
    if plan.fits:
        return []
    lines = ["what would fit, each alone (estimates; plan again with it):"] if changes else []
    for change in changes:
        size = "less; how much only compiling tells" if change.needed is None else f"about {gib(change.needed)} a chip"
        lines.append(f"  {change.settings}: {size}")
    return lines or ["no smaller batch and no slice of these chips would do"]


def as_json(plan: Plan, step: Step, label: Label) -> dict[str, object]:
    """Returns the plan for machines."""
    return {
        **label._asdict(),
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "mesh": sharding.named(plan.mesh),
        "tokens": plan.tokens,
        "fits": plan.fits,
        "chip_memory": plan.topology.chip.memory,
        "memory": plan.memory._asdict(),
        "collectives": [moved._asdict() for moved in plan.collectives],
        "largest": [largest._asdict() for largest in plan.largest],
        "cost": plan.cost,
        "kernels": plan.kernels,
        "read": plan.read,
        "model_flops_per_chip": step.flops / plan.topology.chips,
        "jax": jax.__version__,
    }


def partition_lines(step: Step, axis_sizes: dict[str, int]) -> list[str]:
    """Returns each group of arguments by partition: how many arrays, their bytes, and one by name."""
    lines = []
    for group, tree in step.groups.items():
        found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            spec: PartitionSpec = leaf.sharding.spec
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            whole = leaf.size * leaf.dtype.itemsize
            found[_axes(spec)].append((name, whole, part_bytes(leaf, spec, axis_sizes)))
        for spec_text, leaves in sorted(found.items(), key=lambda item: -sum(leaf[1] for leaf in item[1])):
            whole, part = sum(leaf[1] for leaf in leaves), sum(leaf[2] for leaf in leaves)
            example = max(leaves, key=lambda leaf: leaf[1])[0]
            sizes = f"{gib(whole)} -> {gib(part)} a chip"
            lines.append(f"{group:<20} {spec_text:<28} {len(leaves):>4} arrays, {sizes}, e.g. {example}")
    return lines


def _axes(spec: PartitionSpec) -> str:
    named = [" and ".join((entry,) if isinstance(entry, str) else entry) if entry else "-" for entry in spec]
    return f"[{', '.join(named)}]" if any(entry for entry in spec) else "whole"


def gib(count: float) -> str:
    """Formats bytes in the unit that fits."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def mesh(sizes: tuple[int, ...]) -> str:
    """Formats a mesh as "data 4 x fsdp 1 x tensor 2"."""
    return " x ".join(f"{axis} {size}" for axis, size in sharding.named(sizes).items())
