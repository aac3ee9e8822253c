"""Sharding: a mesh of axes data, fsdp and tensor, and one ordered table from names to partitions.

Rows of a batch are cut over data and fsdp, heads, channels and vocabulary over tensor; fsdp also cuts the other axis of
each matrix, which is gathered when it is used. Everything here does nothing where no mesh is set (`jax.set_mesh`), so
that the same program runs on one device.
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from pallas_kernels import wkv7

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are cut."""

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


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """Makes a mesh of devices.

    Args:
      data: size of the axis over which rows of a batch are cut.
      fsdp: size of the axis over which rows and weights are cut.
      tensor: size of the axis over which heads, channels and vocabulary are cut. One of the sizes may be -1:
        what is left.
      devices: the devices; None takes all.

    Returns:
      The mesh, for `jax.set_mesh`.

    Raises:
      ValueError: one line, if the product of the sizes is not the number of devices.
    """
    count = len(jax.devices() if devices is None else devices)
    sizes = resolve_sizes((data, fsdp, tensor), count)
    if devices is None:
        devices = jax.devices()
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(sizes)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve_sizes(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns the axis sizes with -1 replaced, so that their product is `count`.

    Raises:
      ValueError: one line, if there are none.
    """
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or list(sizes).count(-1) > 1:
        raise ValueError(f"mesh: {text}: sizes are at least 1, and one of them at most is -1 (what is left)")
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ValueError(f"mesh: {text} does not fit {count} devices: the product must be their number")
    return tuple(count // known if size == -1 else size for size in sizes)


def partition(path: str, shape: Sequence[int], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns the partition of a leaf by the table. An array axis that its mesh axis does not divide stays whole."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    rule = rule[1:] if rule[:1] == (...,) else (*rule, *[None] * (len(shape) - len(rule)))
    axes = [None] * (len(shape) - len(rule)) + list(rule)[: len(shape)]
    return PartitionSpec(*(
        axis if isinstance(axis, str) and size % axis_sizes[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ))  # fmt: skip


def partitions(tree: Tree, axis_sizes: Mapping[str, int]) -> Tree:
    """Returns the partition of every leaf of a tree of parameters, states, moments, or all of them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: partition(
            jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf), axis_sizes
        ),
        tree,
    )


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Returns `partitions` as shardings on a mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        partitions(tree, mesh.shape),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows cut over the mesh."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


@runtime_checkable
class Sliceable(Protocol):
    """An array, or anything of which parts can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every axis."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        ...

    def __getitem__(self, index: tuple[slice, ...] | None, /) -> ArrayLike: ...


def place(leaf: Sliceable, sharding: NamedSharding | None, dtype: DTypeLike | None = None) -> Array:
    """Puts an array, or what can be sliced (see `checkpoint.names.Stacked`), on its devices, cast to `dtype`.

    Each process reads only the slices of its own devices.
    """
    dtype = dtype or leaf.dtype
    if sharding is None:
        return jax.numpy.asarray(leaf, dtype)
    return jax.make_array_from_callback(
        np.shape(leaf), sharding, lambda index: np.asarray(leaf[index]).astype(dtype, copy=False)
    )


def _mesh() -> AbstractMesh | None:
    """Returns the mesh in whose context a program is traced; None if there is none or its axes are cut by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes or not set(AXES) <= set(mesh.axis_names) else mesh


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


def by_rows(x: Array) -> Array:
    """Constrains an activation [B, ...] to have its rows cut over the mesh and all else whole."""
    mesh = _mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(mesh, x.shape[0]), *[None] * (x.ndim - 1)))


def _rows(mesh: AbstractMesh, count: int) -> tuple[str, ...] | None:
    return ROWS if count % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else None


def wkv7_by_rows_and_heads(
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
    """Runs `pallas_kernels.wkv7` with each device at its own rows and heads.

    Rows and heads are independent, so nothing is exchanged.
    Rows or heads that the mesh does not divide are computed by all its devices.
    """
    mesh = _mesh()
    if mesh is None:
        return wkv7(r, log_w, k, v, a, b, s0, valid=valid, reset=reset, implementation=implementation)
    rows = _rows(mesh, r.shape[0])
    heads = "tensor" if r.shape[2] % mesh.shape["tensor"] == 0 else None
    tokens, states = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    flags = {name: flag for name, flag in (("valid", valid), ("reset", reset)) if flag is not None}

    def local(inputs: tuple[Array, ...], s0: Array, flags: dict[str, Array]) -> tuple[Array, Array]:
        r, log_w, k, v, a, b = inputs
        return wkv7(r, log_w, k, v, a, b, s0, **flags, implementation=implementation)

    specs = ((tokens,) * 6, states, dict.fromkeys(flags, PartitionSpec(rows)))
    return jax.shard_map(local, in_specs=specs, out_specs=(tokens, states))((r, log_w, k, v, a, b), s0, flags)


def host(tree: Tree) -> Tree:
    """Returns the tree as numpy arrays in every process; all processes must call it for what is spread over them."""

    def fetch(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
