"""The arrays of a `WKVState` as tensors of a state file.

They are `blocks.{i}.att.memory.{field}`, beside `blocks.{i}.att.time_state`.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rwkv7_jax.checkpoint.files import CheckpointError
from rwkv7_jax.wkv_state import WKV_STATES, AnyWKVState, WKVState

TENSOR = re.compile(r"blocks\.(\d{1,6})\.att\.memory\.([a-z_]+)")
AXES = {
    "residual": {"s_ext": "HVF", "supports": "HFK", "gamma": "H"},
    "offset": {"offset": "HVK"},
    "recurrent": {"s_ext": "HVM", "gate": "H", "supports": "HMK", "gamma": "H", "centre": "HM"},
    "literal": {"s_ext": "HMM", "supports": "H6MK", "gamma": "H6", "out": "HVM"},
}
"""The axes of each array of one layer; 6 is itself."""


def kind_of(wkv: AnyWKVState) -> str | None:
    """Returns the name of a `WKVState`'s kind, None for a plain matrix."""
    return next((name for name, kind in WKV_STATES.items() if type(wkv) is kind), None)


def to_tensors(wkv: AnyWKVState) -> dict[str, np.ndarray]:
    """Returns all arrays except `s`, layer by layer, float32."""
    kind = kind_of(wkv)
    if kind is None:
        raise CheckpointError(f"a WKV state of type {type(wkv).__name__} cannot be stored in a state file")
    arrays = {name: np.asarray(getattr(wkv, name), np.float32) for name in AXES[kind]}
    return {f"blocks.{i}.att.memory.{name}": row for name, x in arrays.items() for i, row in enumerate(x)}


def from_tensors(tensors: Mapping[str, np.ndarray], kind: str, s: Float[Array, "L H V K"]) -> WKVState:
    """Returns the `WKVState` of this kind around the plain matrices s [L, H, V, K].

    Raises:
      CheckpointError: an unknown kind, missing or superfluous arrays, shapes that do not fit, or NaN.
    """
    if kind not in AXES:
        raise CheckpointError(f"unknown kind of WKV state {kind!r}: one of {', '.join(AXES)} is read, update rwkv7_jax")
    wanted = [f"blocks.{i}.att.memory.{name}" for i in range(s.shape[0]) for name in AXES[kind]]
    if odd := sorted({name for name in tensors if TENSOR.fullmatch(name)} ^ set(wanted)):
        raise CheckpointError(f"{odd[0]} is missing or does not belong to a {kind} state of {s.shape[0]} layers")
    sizes = dict(zip("HVK", s.shape[1:], strict=True)) | {"6": 6}
    for name in wanted:
        _check_shape(name, tensors[name], AXES[kind][name.rsplit(".", 1)[1]], sizes)
    stacked = {
        name: jnp.asarray(np.stack([tensors[f"blocks.{i}.att.memory.{name}"] for i in range(s.shape[0])]), jnp.float32)
        for name in AXES[kind]
    }
    return WKV_STATES[kind](s=s, **stacked)


def _check_shape(name: str, array: np.ndarray, axes: str, sizes: dict[str, int]) -> None:
    """Checks one array's shape and adds new axes to `sizes`."""
    for axis, size in zip(axes, array.shape, strict=False):
        sizes.setdefault(axis, size)
    if array.shape != tuple(sizes.get(axis, -1) for axis in axes):
        raise CheckpointError(f"{name} has shape {list(array.shape)}, which does not fit [{', '.join(axes)}]")
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} has values that are not finite; export the state again from a sound run")
