"""What would make a step fit, as settings with an estimate of the bytes that a chip would need.

Arguments are counted exactly. Temporaries are taken to go with the tokens that a chip computes at a time.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from experiments.plan import topology
from experiments.plan.compiled import Plan, held
from experiments.plan.step import Step
from experiments.plan.topology import CHIPS, GIB
from rwkv7_jax import sharding

LEAST_TOKENS = 128
"""Rows are not advised to be shorter."""
RESERVED = GIB // 4
"""What the TPU compiler keeps of a chip's memory."""


class Advice(NamedTuple):
    """A change of settings; needed: bytes on a chip, about, None where only the compiler knows."""

    settings: str
    needed: int | None


def advice(plan: Plan, step: Step) -> list[Advice]:
    """Returns changes that should make a step fit, each alone, those that change least first.

    Where the compiler did not say what it needs, they are the changes that need least, without an estimate.
    """
    if plan.refused and not plan.memory.temporaries:
        return [Advice(f"--{step.knobs.remat} block", None), Advice(f"--{step.knobs.batch} {_parts(plan)}", None)]
    return [*_same_update(plan, step), *_fewer_tokens(plan, step), *_more_memory(plan, step)]


def _same_update(plan: Plan, step: Step) -> Iterator[Advice]:
    """Other ways to the same update on the same chips."""
    knobs = step.knobs
    if step.model.remat != "block" and plan.memory.arguments < plan.limit:
        yield Advice(f"--{knobs.remat} block", None)
    rows = step.batch_size // _parts(plan) // knobs.accumulated
    for times in _powers(rows):
        if _needed(plan, 1 / times) <= plan.limit:
            yield Advice(f"--{knobs.accumulate} {times * knobs.accumulated}", _needed(plan, 1 / times))
            return


def _fewer_tokens(plan: Plan, step: Step) -> Iterator[Advice]:
    parts = _parts(plan) * step.knobs.accumulated
    for key, size, least in (
        (step.knobs.batch, step.batch_size, parts),
        (step.knobs.length, step.length, LEAST_TOKENS),
    ):
        for times in _powers(size // least):
            if size % times == 0 and _needed(plan, 1 / times) <= plan.limit:
                yield Advice(f"--{key} {size // times}", _needed(plan, 1 / times))
                break


def _more_memory(plan: Plan, step: Step) -> Iterator[Advice]:
    """More chips of this kind, each with the whole weights or with a part of them, and larger chips."""
    chips, (data, fsdp, tensor, along) = plan.topology.chips, plan.mesh
    for times in _powers(plan.topology.chip.most // chips):
        cut = [(data * times, fsdp, tensor, along), (data, fsdp * times, tensor, along)]
        cut += [(data, fsdp, tensor, along * times)] if step.length >= along * times * LEAST_TOKENS else []
        found = [_on(plan, step, sizes) for sizes in cut]
        fitting = [one for one in found if one.needed is not None and one.needed <= plan.limit]
        if fitting:
            yield fitting[0]
            break
    for kind, chip in sorted(CHIPS.items(), key=lambda item: item[1].memory):
        larger = chip.platform == plan.topology.chip.platform and chip.memory > plan.topology.chip.memory
        if larger and plan.memory.needed <= chip.memory - RESERVED:
            yield Advice(f"--topology {topology.name(kind, chips)}", plan.memory.needed)
            return


def _on(plan: Plan, step: Step, sizes: tuple[int, int, int, int]) -> Advice:
    """The step on a slice that holds a mesh; each chip has a row at least, or a part of one."""
    parts = sizes[0] * sizes[1]
    rows = max(step.batch_size, parts)
    share = (rows / parts) / (step.batch_size / _parts(plan)) * plan.mesh[3] / sizes[3]
    needed = held(step.groups, dict(zip(sharding.AXES, sizes, strict=True))) + _rest(plan, share)
    words = [f"--topology {topology.name(plan.topology.kind, math.prod(sizes))}"]
    words += [f"--mesh.{axis} {size}" for axis, size in zip(sharding.AXES[1:], sizes[1:], strict=True) if size > 1]
    words += [f"--{step.knobs.batch} {rows}"] if rows > step.batch_size else []
    return Advice(" ".join(words), needed)


def _parts(plan: Plan) -> int:
    """Chips over which the rows are cut."""
    return plan.mesh[0] * plan.mesh[1]


def _needed(plan: Plan, share: float) -> int:
    """Bytes of a chip with a share of the tokens."""
    return plan.memory.arguments + _rest(plan, share)


def _rest(plan: Plan, share: float) -> int:
    """Bytes beside the arguments."""
    return int(plan.memory.code + max(plan.memory.needed - plan.memory.arguments - plan.memory.code, 0) * share)


def _powers(largest: int) -> Iterator[int]:
    """2, 4, ... up to `largest`."""
    yield from (1 << i for i in range(1, max(largest, 0).bit_length()))
