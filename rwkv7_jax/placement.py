"""Arrays from the host to the devices that hold their parts, and back."""

from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, PyTree

Tree = TypeVar("Tree")


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
    """Puts an array on its devices; each process reads only the slices of its own devices.

    Args:
      leaf: an array, or anything of which parts can be read, such as the stacks of `load_checkpoint(lazy=True)`.
      sharding: where each part goes; None puts all of it on the default device.
      dtype: cast to this one; None keeps the array's.

    Returns:
      The array, spread over the devices.
    """
    dtype = dtype or leaf.dtype
    if sharding is None:
        return jax.numpy.asarray(leaf, dtype)
    return jax.make_array_from_callback(
        np.shape(leaf), sharding, lambda index: np.asarray(leaf[index]).astype(dtype, copy=False)
    )


def host(tree: Tree) -> Tree:
    """Returns a tree on the host, whole in every process.

    Args:
      tree: arrays; all processes must call this together for those that are spread over them.

    Returns:
      The tree with numpy arrays.
    """

    def fetch(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
