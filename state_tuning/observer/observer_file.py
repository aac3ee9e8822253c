"""Observers as files: the maps of both directions in one safetensors file, with the hashes of both models.

    save_observer("observer.safetensors", observer, small.weights_hash, large.weights_hash, every=16)
    found = load_observer("observer.safetensors", small=small, large=large)

A file holds numbers and text alone: nothing in it is run.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rwkv7_jax.checkpoint import safetensors
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, guard
from rwkv7_jax.checkpoint.state_hash import check_hash, state_hash
from rwkv7_jax.json_text import json_text
from rwkv7_jax.language_model import LanguageModel
from state_tuning.observer.observe import Observer
from state_tuning.observer.state_map import Maps

__all__ = ["StoredObserver", "load_observer", "save_observer"]

FORMAT, VERSION = "rwkv7-observer", "1"
PARTS = {"source": (1, 2), "u": (5,), "w": (5,), "bias": (4,), "scale": (2,)}
"""Name -> numbers of axes."""
NEEDED = ("source", "u", "w")


class StoredObserver(NamedTuple):
    """An observer, and what its file says about it."""

    observer: Observer
    """The maps of both directions."""
    metadata: dict[str, str]
    """The text fields stored with them: `small_hash`, `large_hash`, `every`, and others as JSON."""

    @property
    def every(self) -> int:
        """Tokens between two comparisons that the maps were fitted to."""
        return int(self.metadata["every"])


def save_observer(
    path: PathLike,
    observer: Observer,
    small_hash: str,
    large_hash: str,
    *,
    every: int,
    details: Mapping[str, object] | None = None,
) -> None:
    """Writes the file atomically.

    Args:
      path: the file.
      observer: the maps.
      small_hash: `weights_hash` of the observer's model.
      large_hash: that of the observed one.
      every: tokens between two comparisons.
      details: further fields; values that are not text are stored as JSON.

    Raises:
      CheckpointError: a number is not finite.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp, numpy as np
      >>> maps = Maps(np.zeros(1, np.int32), jnp.ones((1, 2, 2, 4, 4)), jnp.ones((1, 2, 2, 4, 4)))
      >>> path = os.path.join(tempfile.mkdtemp(), "observer.safetensors")
      >>> save_observer(path, Observer(maps, maps), "a", "b", every=16)
      >>> load_observer(path).every
      16
    """
    tensors = {
        f"{direction}.{name}": np.asarray(array, np.int32 if name == "source" else np.float32)
        for direction, maps in observer._asdict().items()
        for name, array in maps._asdict().items()
        if array is not None
    }
    if wrong := [name for name, array in tensors.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"{path}: {wrong[0]} has values that are not finite, which no observer's file may hold")
    fields = {key: value if isinstance(value, str) else json_text(value) for key, value in (details or {}).items()}
    fixed = {"format": FORMAT, "version": VERSION, "small_hash": small_hash, "large_hash": large_hash}
    safetensors.write(path, tensors, fields | fixed | {"every": str(every), "state_hash": state_hash(tensors)})


def load_observer(
    path: PathLike, *, small: LanguageModel | None = None, large: LanguageModel | None = None
) -> StoredObserver:
    """Reads an observer's file.

    Args:
      path: the file.
      small: the observer's model, to be checked.
      large: the observed model, to be checked.

    Returns:
      The observer and what the file says about it.

    Raises:
      CheckpointError: one line, for a damaged file, or one of other models.
      FileNotFoundError: there is no such file.
    """
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"{path}: no such observer; check the path")
    with guard(path, "an observer's file"):
        tensors, metadata = safetensors.read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError("not an observer's file; `rwkv7 observe` writes them")
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"version {metadata.get('version')} of observers' files; {VERSION} is read")
        check_hash(tensors, metadata)
        if not metadata.get("every", "").isdecimal() or int(metadata["every"]) < 1:
            raise CheckpointError(f"every is {metadata.get('every')!r:.40}; a number from 1 on is needed")
        if unknown := [name for name in tensors if name.partition(".")[2] not in PARTS]:
            raise CheckpointError(f"tensor {unknown[0]!r:.60}, which no observer has")
        observer = Observer(*(_maps(tensors, direction) for direction in Observer._fields))
        _check_both_ways(observer)
        for name, lm, maps in (("small", small, observer.down), ("large", large, observer.up)):
            if lm is not None:
                _check_model(name, lm, maps, metadata)
    return StoredObserver(observer, metadata)


def _maps(tensors: Mapping[str, np.ndarray], direction: str) -> Maps:
    found = {name: tensors[f"{direction}.{name}"] for name in PARTS if f"{direction}.{name}" in tensors}
    if missing := [name for name in NEEDED if name not in found]:
        raise CheckpointError(f"tensor {direction}.{missing[0]} is missing")
    for name, array in found.items():
        wanted = np.int32 if name == "source" else np.float32
        if array.dtype != wanted or array.ndim not in PARTS[name] or 0 in array.shape:
            shown = f"{direction}.{name} is {array.dtype} of shape {list(array.shape)}"
            raise CheckpointError(f"{shown}; {np.dtype(wanted)} with {PARTS[name][-1]} axes is needed")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{direction}.{name} has values that are not finite")
    u, w, source = found["u"], found["w"], found["source"]
    bias = found.get("bias", np.empty((*u.shape[:2], u.shape[3], w.shape[3])))
    if u.shape[:3] != w.shape[:3] or len(source) != len(u) or bias.shape != (*u.shape[:2], u.shape[3], w.shape[3]):
        raise CheckpointError(f"the shapes of {direction}.u, w, source and bias do not fit each other")
    others = {name: jnp.asarray(array) for name, array in found.items() if name != "source"}
    return Maps(np.array(source), **others)


def _check_both_ways(observer: Observer) -> None:
    """Each direction starts where the other one ends."""
    for name, maps, other in (("up", observer.up, observer.down), ("down", observer.down, observer.up)):
        layers, heads = other.u.shape[:2]
        read = heads * (2 if maps.scale is not None else 1) * (maps.source.size // len(maps.source))
        sizes = (maps.u.shape[4], maps.w.shape[4]) == (other.u.shape[3], other.w.shape[3])
        scaled = maps.scale is None or maps.scale.shape == (layers, heads)
        inside = int(np.min(maps.source)) >= 0 and int(np.max(maps.source)) < layers
        if not (sizes and scaled and inside) or maps.u.shape[2] % read:
            raise CheckpointError(f"the maps {name} do not read what the other direction gives")


def _check_model(name: str, lm: LanguageModel, maps: Maps, metadata: Mapping[str, str]) -> None:
    own, stored = lm.weights_hash, metadata.get(f"{name}_hash", "")
    if own and stored and own != stored:
        raise CheckpointError(f"made for the {name} model {stored[:16]}, not for {own[:16]}; give that model")
    given, config = maps.u.shape, lm.config
    if (given[0], given[1], given[3]) != (config.n_layer, config.n_head, config.head_size):
        text = f"{given[0]} layers with {given[1]} heads of {given[3]}, the {name} model has {config.n_layer} layers"
        raise CheckpointError(f"made for {text} with {config.n_head} heads of {config.head_size}")
