"""State files: a tuned S_0 in this project's format and in the layouts of other tools around RWKV-7.

One tensor a layer, `blocks.{i}.att.time_state`. Which of its two inner axes is the value axis differs between tools and
cannot be seen from the shape, so a foreign file needs `layout=`, or `detect_layout` with a loss to compare.
This project's file (safetensors) names its layout, base model, method, config and metrics in its metadata.
"""

import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, SupportsFloat

import jax.numpy as jnp
import numpy as np

from rwkv7_jax.checkpoint import pth, safetensors, small_states, wkv_states
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, guard, one_line, some
from rwkv7_jax.checkpoint.layouts import without_wrappers
from rwkv7_jax.checkpoint.state_hash import check_hash, state_hash
from rwkv7_jax.checkpoint.state_layouts import LAYOUTS, Layout, find_layout
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.json_text import json_text
from rwkv7_jax.state import State

FORMAT = "rwkv7-state"
VERSION = "1"
TIME_STATE = re.compile(r"blocks\.(\d{1,6})\.att\.time_state")
SHIFT = re.compile(r"blocks\.(\d{1,6})\.(att_shift|ffn_shift)")


class TunedState(NamedTuple):
    """An unbatched float32 state and the text fields stored with it (JSON where they are structured)."""

    state: State
    """Where a prompt begins, instead of the zero state."""
    metadata: dict[str, str]
    """The text fields: `base_model_hash`, `method`, `task`, `config`, `metrics` and any others."""

    def save(self, path: PathLike) -> None:
        """Writes the state and its fields to a file, as `save_state` does."""
        save_state(path, self.state, metadata=self.metadata)


def state_metadata(
    base_model_hash: str,
    method: str,
    *,
    task: str | None = None,
    config: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Returns what a state file says about its state.

    Args:
      base_model_hash: `weights_hash` of the model that the state belongs to.
      method: name of the method that made the state.
      task: what it was tuned for.
      config: settings of the method.
      metrics: what was measured.

    Returns:
      Text fields; settings and metrics as JSON, absent ones left out.
    """
    named = {"config": config, "metrics": metrics}
    fields = {"base_model_hash": base_model_hash, "method": method} | ({} if task is None else {"task": task})
    return fields | {name: json_text(value) for name, value in named.items() if value is not None}


class LayoutGuess(NamedTuple):
    """What `detect_layout` found."""

    layout: str
    """The name in `LAYOUTS` whose loss is lowest."""
    losses: dict[str, float]
    """The loss under every layout that was tried, by name."""


def save_state(
    path: PathLike,
    state: State,
    *,
    metadata: Mapping[str, object],
    rank: int | None = None,
    dtype: small_states.SmallDtype = "float32",
) -> None:
    """Writes a state file (safetensors) atomically.

    Shift states are stored only if they are not zero. A `WKVState` is stored with all its arrays, and its kind in the
    metadata.

    Args:
      path: the file.
      state: an unbatched state.
      metadata: `base_model_hash`, `method`, `config`, `metrics` and other fields; values that are not text are stored
        as JSON (see `state_metadata`).
      rank: keep every head's matrix at this rank, as factors; None: whole.
      dtype: of the matrices in the file.

    Raises:
      CheckpointError: the state is batched, or not finite, or cannot be stored at this rank and in this dtype.

    Example:
      >>> import os, tempfile
      >>> from rwkv7_jax import RWKV7Config, load_state, save_state, zero_state
      >>> path = os.path.join(tempfile.mkdtemp(), "state.safetensors")
      >>> state = zero_state(RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4), None)
      >>> save_state(path, state, metadata={"method": "zero"})
      >>> load_state(path).metadata["method"]
      'zero'
    """
    kind = wkv_states.kind_of(state.wkv)
    with guard(path, "a state"):
        extra = wkv_states.to_tensors(state.wkv) if kind else {}
        tensors = _to_tensors(_plain(state), LAYOUTS["value_key"], shifts=True)
        small = rank is not None or dtype != "float32"
        if small and kind:
            raise CheckpointError(f"an upscaled state ({kind}) is written whole, in float32")
        tensors = (small_states.packed(tensors, rank, dtype) if small else tensors) | extra
    fields = {key: value if isinstance(value, str) else json_text(value) for key, value in metadata.items()}
    version = small_states.VERSION if small else VERSION
    fixed = {"format": FORMAT, "version": version, "layout": "value_key", "state_hash": state_hash(tensors)}
    fixed |= {"memory": kind} if kind else {}
    safetensors.write(path, tensors, fields | fixed)


def load_state(
    path: PathLike,
    *,
    layout: str | None = None,
    config: RWKV7Config | None = None,
    base_model_hash: str | None = None,
) -> TunedState:
    """Reads a state file of any tool (safetensors, `.st` or `.pth`, by content).

    Args:
      path: the file.
      layout: a name in `LAYOUTS`; files of `save_state` name their own.
      config: the model that the state is for, to be checked.
      base_model_hash: `weights_hash` of that model; another base in the file gives a warning.

    Returns:
      The unbatched float32 state and its metadata.

    Raises:
      CheckpointError: one line, for damaged files, unknown layouts and shapes that do not fit.
      FileNotFoundError: there is no such file.
    """
    with guard(path, "a state file"):
        tensors, metadata = read_state_tensors(path)
        if metadata.get("format") == FORMAT:
            _check_own(tensors, metadata)
            layout = layout or metadata.get("layout")
        elif "state_hash" in metadata:
            check_hash(tensors, metadata)
        tensors = small_states.unpack(tensors)
        plain = {name: array for name, array in tensors.items() if not wkv_states.TENSOR.fullmatch(name)}
        state = _to_state(plain, layout, config)
        if len(plain) < len(tensors) or "memory" in metadata:
            state = state._replace(wkv=wkv_states.from_tensors(tensors, metadata.get("memory", ""), state.wkv))
    base = metadata.get("base_model_hash")
    if base and base_model_hash and base != base_model_hash:
        warnings.warn(
            f"{path}: tuned on the base model {one_line(base[:16])}, but used with {base_model_hash[:16]}: "
            "expect wrong output unless they differ in dtype alone",
            stacklevel=2,
        )
    return TunedState(state, metadata)


def export_state(path: PathLike, state: State, *, layout: str, drop_shifts: bool = False) -> None:
    """Writes a state for another tool, exactly one tensor a layer, with a checksum that `load_state` checks.

    Args:
      path: the file: torch's format for `.pth`, else safetensors.
      state: an unbatched state.
      layout: a name in `LAYOUTS`.
      drop_shifts: leave out shift states that are not zero.

    Raises:
      CheckpointError: the layout cannot hold the state: shift states that are not zero (unless `drop_shifts`), a
        `WKVState`, or values beyond float16.

    Example:
      >>> import os, tempfile
      >>> from rwkv7_jax import RWKV7Config, export_state, load_state, zero_state
      >>> path = os.path.join(tempfile.mkdtemp(), "state.pth")
      >>> state = zero_state(RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4), None)
      >>> export_state(path, state, layout="fla")
      >>> load_state(path, layout="fla").state.wkv.shape
      (2, 2, 4, 4)
    """
    if kind := wkv_states.kind_of(state.wkv):
        raise CheckpointError(f"{path}: no other tool reads an upscaled state ({kind}); use the file of save_state")
    if not drop_shifts and (np.any(state.att_shift) or np.any(state.ffn_shift)):
        raise CheckpointError(
            f"{path}: layout {layout} has no place for shift states; drop_shifts=True (--drop_shifts) omits them"
        )
    with guard(path, "a state"):
        tensors = _to_tensors(state, find_layout(layout), shifts=False)
    if str(path).endswith(".pth"):
        pth.write(path, tensors)
    else:
        safetensors.write(path, tensors, {"format": "pt", "state_hash": state_hash(tensors)})


def detect_layout(tensors: Mapping[str, np.ndarray], loss_fn: Callable[[State], SupportsFloat]) -> LayoutGuess:
    """Guesses which order a foreign state is in: the one with the lower teacher-forced loss.

    Args:
      tensors: from `read_state_tensors`.
      loss_fn: unbatched state -> mean loss of text like that which the state was tuned for.

    Returns:
      The layout and both losses; equal losses (a zero or symmetric state) give value_key.

    Raises:
      CheckpointError: no loss is finite.
    """
    batched = any(np.ndim(array) == 4 for name, array in tensors.items() if TIME_STATE.fullmatch(name))
    names = ("value_key", "fla") if batched else ("value_key", "rlhf")
    losses = {name: float(loss_fn(_to_state(tensors, name, None))) for name in names}
    finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        raise CheckpointError(f"the loss is not finite under any layout ({losses}); this state does not fit this model")
    return LayoutGuess(min(finite, key=finite.__getitem__), losses)


def read_state_tensors(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a `.pth`, `.st` or `.safetensors` state file, recognised by content.

    Drops prefixes of training tools (`module.`, `model.`, ...), and a model that the state is merged into.

    Args:
      path: the file.

    Returns:
      (tensors as the file has them, by name; the file's metadata, {} for `.pth`).

    Raises:
      CheckpointError: the file is damaged.
      FileNotFoundError: there is no such file.
    """
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"{path}: no such state file; check the path")
    with open(path, "rb") as file:
        head = file.read(4)
    if head.startswith((pth.MAGIC, pth.PICKLE)):
        return _state_part(pth.read_tensors(path)), {}
    tensors, metadata = safetensors.read_tensors(path)
    return _state_part(tensors), metadata


def _state_part(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors without wrapper prefixes, and without a model around a state."""
    plain = without_wrappers(tensors)
    state = {name: array for name, array in plain.items() if TIME_STATE.fullmatch(name)}
    return state if state and {"emb.weight", "blocks.0.att.x_r"} <= set(plain) else plain


def _to_state(tensors: Mapping[str, np.ndarray], layout: str | None, config: RWKV7Config | None) -> State:
    layers = {int(m[1]): array for name, array in tensors.items() if (m := TIME_STATE.fullmatch(name))}
    if unknown := [name for name in tensors if not (TIME_STATE.fullmatch(name) or SHIFT.fullmatch(name))]:
        raise CheckpointError(f"tensors that no state file has: {some(unknown)}; is this a model checkpoint?")
    if not layers or set(layers) != set(range(len(layers))):
        raise CheckpointError(f"time_state is there for the layers {sorted(layers)}; all layers from 0 on are needed")
    wkv = np.stack([_one_layer(i, layers[i], find_layout(layout)) for i in range(len(layers))])
    depth, heads, size = wkv.shape[:3]
    _check_model(depth, heads, size, config)
    shifts = [
        np.stack([_shift(tensors, f"blocks.{i}.{name}", heads * size) for i in range(depth)])
        for name in ("att_shift", "ffn_shift")
    ]
    if not all(np.isfinite(array).all() for array in (wkv, *shifts)):
        raise CheckpointError("the state has values that are not finite; export it again from a sound run")
    return _state(wkv, *shifts)


def _one_layer(index: int, array: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns one layer as float32 [H, V, K]."""
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[1] != array.shape[2] or 0 in array.shape:
        raise CheckpointError(f"blocks.{index}.att.time_state has shape {list(array.shape)}, expected [H, N, N]")
    if array.dtype.kind not in "fV":
        raise CheckpointError(f"blocks.{index}.att.time_state is {array.dtype}, expected floating numbers")
    return np.swapaxes(array, 1, 2).astype(np.float32) if layout.key_first else array.astype(np.float32)


def _shift(tensors: Mapping[str, np.ndarray], name: str, width: int) -> np.ndarray:
    array = np.asarray(tensors.get(name, np.zeros(width)), np.float32)
    if array.shape != (width,):
        raise CheckpointError(f"{name} has shape {list(array.shape)}, expected [{width}]")
    return array


def _check_model(depth: int, heads: int, size: int, config: RWKV7Config | None) -> None:
    if config is None or (depth, heads, size) == (config.n_layer, config.n_head, config.head_size):
        return
    raise CheckpointError(
        f"this state is for {depth} layers with {heads} heads of {size}, the model has {config.n_layer} layers with "
        f"{config.n_head} heads of {config.head_size}; use a state made for this model"
    )


def _to_tensors(state: State, layout: Layout, *, shifts: bool) -> dict[str, np.ndarray]:
    wkv = np.asarray(state.wkv, np.float32)
    if wkv.ndim != 4:
        raise CheckpointError(f"wkv has shape {list(wkv.shape)}; a state file holds one unbatched state [L, H, V, K]")
    if not all(np.isfinite(array).all() for array in (wkv, state.att_shift, state.ffn_shift)):
        raise CheckpointError("the state has values that are not finite, which no state file may hold")
    if layout.key_first:
        wkv = np.swapaxes(wkv, 2, 3)
    with np.errstate(over="ignore"):
        wkv = wkv.astype(layout.dtype)
    if not np.isfinite(wkv).all():
        raise CheckpointError(f"the state has values that {np.dtype(layout.dtype)} cannot hold; choose another layout")
    tensors = {f"blocks.{i}.att.time_state": s[None] if layout.batch_axis else s for i, s in enumerate(wkv)}
    for name in ("att_shift", "ffn_shift") if shifts else ():
        array = np.asarray(getattr(state, name), np.float32)
        if np.any(array):
            tensors |= {f"blocks.{i}.{name}": row for i, row in enumerate(array)}
    return tensors


def _state(wkv: np.ndarray, att_shift: np.ndarray, ffn_shift: np.ndarray) -> State:
    return State(jnp.asarray(att_shift), jnp.asarray(ffn_shift), jnp.asarray(wkv))


def _plain(state: State) -> State:
    """Returns the state with the plain matrix S_0 of its `WKVState`."""
    return state._replace(wkv=getattr(state.wkv, "s", state.wkv))


def _check_own(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    if metadata.get("version") not in (VERSION, small_states.VERSION):
        raise CheckpointError(f"state file version {metadata.get('version')}; 1 and 2 are read, update rwkv7_jax")
    check_hash(tensors, metadata)
