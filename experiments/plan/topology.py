"""Slices and hosts by the names under which they are rented: v5e-256, v5p-128, v6e-16, h100x8, h200x8."""

import os
import re
from typing import NamedTuple

from experiments.config.overrides import UsageError

GIB = 1 << 30


class Chip(NamedTuple):
    """memory: bytes; kind: in `rwkv7_jax.flops`; name_counts: cores that the rented name counts for a chip; most: chips
    of the largest slice or host."""

    platform: str
    memory: int
    kind: str
    name_counts: int
    axes: int
    most: int


CHIPS = {
    "v4": Chip("tpu", 32 * GIB, "TPU v4", 2, 3, 4096),
    "v5e": Chip("tpu", 16 * GIB, "TPU v5e", 1, 2, 256),
    "v5p": Chip("tpu", 95 * GIB, "TPU v5p", 2, 3, 8192),
    "v6e": Chip("tpu", 32 * GIB, "TPU v6e", 1, 2, 256),
    "a100": Chip("cuda", 80 * GIB, "NVIDIA A100", 1, 1, 8),
    "h100": Chip("cuda", 80 * GIB, "NVIDIA H100", 1, 1, 8),
    "h200": Chip("cuda", 141 * 10**9, "NVIDIA H200", 1, 1, 8),
}
"""Memory from Google's pages of the chips and NVIDIA's data sheets (SXM)."""


class Topology(NamedTuple):
    """A slice or host: the kind of chip, how many, and their grid."""

    name: str
    kind: str
    chips: int
    grid: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The facts of its kind of chip."""
        return CHIPS[self.kind]


def parse(name: str) -> Topology:
    """Returns the topology of a rented name. v4 and v5p count two cores a chip, so v5p-128 has 64 chips.

    Raises:
      UsageError: an unknown kind, or a number of chips that does not make a slice.
    """
    match = re.fullmatch(r"(v\d+[a-z]?)-(\d+)|([ah]\d+)x(\d+)", name.lower())
    kind = (match[1] or match[3]) if match else ""
    if not match or kind not in CHIPS:
        raise UsageError(f"topology {name!r} is unknown: give one of {', '.join(CHIPS)} as v5e-256, v5p-128 or h200x8")
    chip = CHIPS[kind]
    count, rest = divmod(int(match[2] or match[4]), chip.name_counts)
    if rest or count < 1 or count & (count - 1):
        raise UsageError(f"topology {name!r}: {int(match[2] or match[4])} is not a slice: give a power of two")
    return Topology(name, kind, count, _grid(count, chip.axes))


def name(kind: str, chips: int) -> str:
    """Returns the rented name of a slice or host, as `parse` reads it."""
    return f"{kind}{'-' if CHIPS[kind].platform == 'tpu' else 'x'}{chips * CHIPS[kind].name_counts}"


def _grid(count: int, axes: int) -> tuple[int, ...]:
    """The most even grid of powers of two."""
    sizes = [1] * axes
    while count > 1:
        sizes[sizes.index(min(sizes))] *= 2
        count //= 2
    return tuple(sorted(sizes))


def whole_hosts(topology: Topology) -> tuple[int, ...]:
    """Returns the grid, at least a host's: smaller slices take a part of its devices."""
    least = (2, 2) if topology.chip.axes == 2 else (2, 2, 1)
    if topology.chips >= 4:
        return topology.grid if topology.chip.axes == 2 else tuple(sorted(topology.grid, reverse=True))
    return least


def prepare(topology: Topology) -> None:
    """Sets the environment that the compiler needs; call it before JAX is imported."""
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false")
    if topology.chip.platform == "tpu":
        # No search for a TPU, and no lock that lets one process alone use the compiler.
        os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
        os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")
    else:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
