"""Sharding: a mesh of axes data, fsdp, tensor and sequence, and one ordered table from names to partitions.

Rows of a batch are cut over data and fsdp, heads, channels and vocabulary over tensor, the tokens of a row over
sequence; fsdp also cuts the other axis of each matrix, which is gathered when it is used. Everything here does nothing
where no mesh is set (`jax.set_mesh`), so that the same program runs on one device. A mesh without the axis sequence
will do.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from types import EllipsisType
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from rwkv7_jax.placement import host, place

__all__ = [
    "AXES", "RULES", "host", "make_mesh", "partition", "partitions", "place", "resolve_sizes", "row_sharding",
    "shardings",
]  # fmt: skip

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "tensor", "sequence")
"""The axes of a mesh, in this order."""
ROWS = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are cut."""
TOKENS = "sequence"
"""The mesh axis over which the tokens of a row are cut; weights and states are whole along it."""

RULES: tuple[tuple[str, tuple[str | EllipsisType | None, ...]], ...] = (
    (r"(^|/)(emb|head)/weight(/(values|scales))?$", ("tensor", "fsdp")),
    (r"att/(receptance|key|value)/weight(/(values|scales))?$", (..., "tensor", "fsdp")),
    (r"att/output/weight(/(values|scales))?$", (..., "fsdp", "tensor")),
    (r"att/[wavg]1$", (..., "fsdp", None)),
    (r"att/[wavg]2$", (..., None, "tensor")),
    (r"att/([wav]0|k_k|k_a|ln_x/(weight|bias))$", (..., "tensor")),
    (r"att/r_k$", (..., "tensor", None)),
    (r"ffn/key/weight(/(values|scales))?$", (..., "tensor", "fsdp")),
    (r"ffn/value/weight(/(values|scales))?$", (..., "fsdp", "tensor")),
    (r"(^|/)wkv(/|$)", (None, "tensor")),
    (r"", ()),
)
"""(pattern in a leaf's path, mesh axis of each array axis), first match first. With `...` before them they are the last
axes, else the first. Optimisers' moments and DBP's matrices carry the path of what they belong to within their own, and
so its partition; wkv is what states hold, [L,H,...]."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Makes a mesh of devices.

    Args:
      data: size of the axis over which rows of a batch are cut.
      fsdp: size of the axis over which rows and weights are cut.
      tensor: size of the axis over which heads, channels and vocabulary are cut.
      sequence: size of the axis over which the tokens of each row are cut. One of the sizes may be -1: what is left.
      devices: the devices; None takes all.

    Returns:
      The mesh, for `jax.set_mesh`.

    Raises:
      ValueError: one line, if the product of the sizes is not the number of devices.
    """
    count = len(jax.devices() if devices is None else devices)
    *outer, tensor, sequence = resolve_sizes((data, fsdp, tensor, sequence), count)
    if devices is None:
        devices = jax.devices()
    sizes = (*outer, sequence, tensor)  # devices of one tensor group next to each other: they send most
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(sizes)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(np.swapaxes(grid, -1, -2), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve_sizes(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns the axis sizes of a mesh with -1 replaced, so that their product is the number of devices.

    Args:
      sizes: one for each of `AXES`; at most one is -1.
      count: number of devices.

    Returns:
      The sizes, none of them -1.

    Raises:
      ValueError: one line, if there are none.
    """
    text = ", ".join(f"{axis}={size}" for axis, size in named(sizes).items())
    if any(size < 1 and size != -1 for size in sizes) or list(sizes).count(-1) > 1:
        raise ValueError(f"mesh: {text}: sizes are at least 1, and one of them at most is -1 (what is left)")
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ValueError(f"mesh: {text} does not fit {count} devices: the product must be their number")
    return tuple(count // known if size == -1 else size for size in sizes)


def named(sizes: Sequence[int]) -> dict[str, int]:
    """Returns the sizes of a mesh by axis; `sequence` only where it cuts anything."""
    return {axis: size for axis, size in zip(AXES, sizes, strict=True) if axis != TOKENS or size != 1}


def partition(path: str, shape: Sequence[int], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns the partition of an array by the table. An array axis that its mesh axis does not divide stays whole.

    Args:
      path: where the array lies in its tree, such as "blocks/att/key/weight".
      shape: its shape.
      axis_sizes: sizes of the mesh by axis, `Mesh.shape`.

    Returns:
      A mesh axis, or None, for each axis of the array.
    """
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    rule = rule[1:] if rule[:1] == (...,) else (*rule, *[None] * (len(shape) - len(rule)))
    axes = [None] * (len(shape) - len(rule)) + list(rule)[: len(shape)]
    return PartitionSpec(*(
        axis if isinstance(axis, str) and size % axis_sizes[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ))  # fmt: skip


def partitions(tree: Tree, axis_sizes: Mapping[str, int]) -> Tree:
    """Returns the partition of every leaf of a tree.

    Args:
      tree: parameters, states, moments, or all of them: arrays, or anything with a shape.
      axis_sizes: sizes of the mesh by axis, `Mesh.shape`.

    Returns:
      The tree with a `PartitionSpec` at every leaf.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: partition(
            jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf), axis_sizes
        ),
        tree,
    )


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Returns the partitions of a tree as shardings on a mesh, for `jax.device_put` or `place`.

    Args:
      tree: as for `partitions`.
      mesh: a mesh of `make_mesh`.

    Returns:
      The tree with a `NamedSharding` at every leaf.
    """
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        partitions(tree, mesh.shape),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows cut over the axes data and fsdp.

    Args:
      mesh: a mesh of `make_mesh`.

    Returns:
      The sharding of arrays whose first axis is the rows'.
    """
    return NamedSharding(mesh, PartitionSpec(ROWS))


def _mesh() -> AbstractMesh | None:
    """Returns the mesh in whose context a program is traced; None if there is none or its axes are cut by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes or not set(AXES) - {TOKENS} <= set(mesh.axis_names) else mesh


def pin(tree: Tree) -> Tree:
    """Constrains every leaf to its partition by the table."""
    mesh = _mesh()
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda leaf, spec: jax.lax.with_sharding_constraint(leaf, spec), tree, partitions(tree, mesh.shape)
    )


def whole(tree: Tree) -> Tree:
    """Constrains small results to be whole on every device."""
    return tree if _mesh() is None else jax.tree.map(_whole, tree)


def _whole(leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


def gathered(tree: Tree) -> Tree:
    """Gathers weights along fsdp, once before a loop that uses them at every step."""
    mesh = _mesh()
    if mesh is None:
        return tree
    specs = partitions(tree, mesh.shape)

    def one(leaf: Array, spec: PartitionSpec) -> Array:
        kept = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
        return jax.lax.with_sharding_constraint(leaf, kept)

    return jax.tree.map(one, tree, specs)


def token_devices(mesh: Mesh | AbstractMesh | None) -> int:
    """Returns the number of devices over which the tokens of each row are cut."""
    return 1 if mesh is None else mesh.shape.get(TOKENS, 1)


def missing_tokens(length: int) -> int:
    """Returns how many tokens of padding let rows of `length` be cut over the mesh; shorter rows than it stay whole."""
    count = token_devices(_mesh())
    return -length % count if length >= count else 0


def token_partition(rows: int, length: int) -> PartitionSpec | None:
    """Returns the partition of activations [B, T, ...] whose tokens are cut over the mesh; None if they are not."""
    mesh = _mesh()
    count = token_devices(mesh)
    return None if mesh is None or count == 1 or length % count else PartitionSpec(_rows(mesh, rows), TOKENS)


def by_tokens(x: Array) -> Array:
    """Constrains an activation [B, T, ...] to have its rows and tokens cut over the mesh and all else whole."""
    mesh = _mesh()
    if mesh is None:
        return x
    spec = token_partition(x.shape[0], x.shape[1]) or PartitionSpec(_rows(mesh, x.shape[0]))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec, *[None] * (x.ndim - len(spec))))


def chunks_as_rows(tree: Tree) -> tuple[Tree, int]:
    """Returns arrays [B, T, ...] as [n * B, T / n, ...], and n: each chunk of a row on its device is one, padded with
    zeros; n is 1 where the tokens are not cut. Row b's chunks are rows b, B + b, ..."""
    mesh = _mesh()
    count = token_devices(mesh)
    if mesh is None or count == 1:
        return tree, 1

    def one(x: Array) -> Array:
        x = jax.numpy.pad(x, ((0, 0), (0, -x.shape[1] % count)) + ((0, 0),) * (x.ndim - 2))
        rows = _rows(mesh, x.shape[0]) or ()
        x = jax.numpy.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)
        x = x.reshape(count * x.shape[1], *x.shape[2:])
        return jax.lax.with_sharding_constraint(x, PartitionSpec((TOKENS, *rows), *[None] * (x.ndim - 1)))

    return jax.tree.map(one, tree), count


def _rows(mesh: AbstractMesh, count: int) -> tuple[str, ...] | None:
    return ROWS if count % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else None


def wkv7_on_mesh(
    r: Float[Array, "B T H K"],
    log_w: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    s0: Float[Array, "B H V K"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V K"]]:
    """Runs `pallas_kernels.wkv7` with each device at its own rows, heads and tokens.

    Rows and heads are independent, so nothing is exchanged; along `sequence` states are handed on, see
    `pallas_kernels.wkv7_sequence_parallel`. Rows, heads or tokens that the mesh does not divide are computed by all its
    devices.
    """
    # Pallas is imported where a program is traced: a start on compiled programs needs none of it.
    from pallas_kernels import wkv7, wkv7_sequence_parallel

    mesh = _mesh()
    if mesh is None:
        return wkv7(r, log_w, k, v, a, b, s0, valid=valid, reset=reset, implementation=implementation)
    rows = _rows(mesh, r.shape[0])
    heads = "tensor" if r.shape[2] % mesh.shape["tensor"] == 0 else None
    cut = token_partition(*r.shape[:2])
    flat, states = cut or PartitionSpec(rows, None), PartitionSpec(rows, heads)
    tokens = PartitionSpec(*flat, heads)
    flags = {name: flag for name, flag in (("valid", valid), ("reset", reset)) if flag is not None}
    op = partial(wkv7_sequence_parallel, axis_name=TOKENS) if cut else wkv7

    def local(inputs: tuple[Array, ...], s0: Array, flags: dict[str, Array]) -> tuple[Array, Array]:
        r, log_w, k, v, a, b = inputs
        valid, reset = flags.get("valid"), flags.get("reset")
        return op(r, log_w, k, v, a, b, s0, valid=valid, reset=reset, implementation=implementation)

    specs = ((tokens,) * 6, states, dict.fromkeys(flags, flat))
    return jax.shard_map(local, in_specs=specs, out_specs=(tokens, states))((r, log_w, k, v, a, b), s0, flags)
