"""The algebra of `state_tuning.core.surgery` on state files."""

import pathlib
from functools import singledispatch

import jax
import numpy as np

from experiments.config.commands import StateConvert, StateDiff, StateInfo, StateMix, StateScale, StateTruncate
from experiments.reporting.tables import text_table
from rwkv7_jax import State
from rwkv7_jax.checkpoint import LAYOUTS, CheckpointError, export_state, save_state
from rwkv7_jax.checkpoint import load_state as load_file
from rwkv7_jax.checkpoint.small_states import SmallDtype
from rwkv7_jax.checkpoint.states import TunedState
from state_tuning.core import surgery

SUFFIXES = (".pth", ".safetensors", ".st")
OWN = (".safetensors", ".st")
SHOWN = ("base_model_hash", "method", "task", "layout", "memory", "metrics", "config", "made_by")


@singledispatch
def run(config: object) -> int:
    """Does what the settings of a verb say; returns the exit status.

    Raises:
      ValueError, OSError: in one line, for files that are missing, damaged, of other dimensions or maps.
    """
    raise TypeError(f"no verb of rwkv7 state has settings of the type {type(config).__name__}")


@run.register
def _info(config: StateInfo) -> int:
    loaded = load_state(config.file, config.layout)
    layers, heads, size, _ = _matrix(loaded.state).shape
    print(f"{config.file}: {layers} layers, {heads} heads of {size}, {surgery.size(loaded.state)} values")
    print("".join(f"{name}: {_short(loaded.metadata[name])}\n" for name in SHOWN if name in loaded.metadata))
    print(norms(loaded.state))
    return 0


@run.register
def _diff(config: StateDiff) -> int:
    first, second = _pair(config.first, config.second, config.layout)
    difference = surgery.diff(first.state, second.state)
    whole, left = (_norm(state) for state in (first.state, difference))
    print(norms(difference))
    print(f"\n|A - B| = {left:.6g}" + (f", {left / whole:.4f} of |A|" if whole else ""))
    if config.output:
        _write(config.output, difference, first, f"diff {config.first} {config.second}")
    return 0


@run.register
def _mix(config: StateMix) -> int:
    first, second = _pair(config.first, config.second, config.layout)
    mixed = surgery.mix([first.state, second.state], [1 - config.weight, config.weight])
    _write(config.output, mixed, first, f"mix {config.first} {config.second} {config.weight:g}")
    return 0


@run.register
def _scale(config: StateScale) -> int:
    assert config.by is not None
    loaded = load_state(config.file, config.layout)
    _write(config.output, surgery.scale(loaded.state, config.by), loaded, f"scale {config.file} {config.by:g}")
    return 0


@run.register
def _truncate(config: StateTruncate) -> int:
    assert config.rank is not None
    loaded = load_state(config.file, config.layout)
    small = surgery.expand(surgery.truncate_rank(loaded.state, config.rank))
    left_out = _norm(surgery.diff(loaded.state, small)) / max(_norm(loaded.state), np.finfo(np.float64).tiny)
    _write(config.output, small, loaded, f"truncate {config.file} {config.rank}")
    print(f"rank {config.rank} leaves out {left_out:.4f} of the norm")
    return 0


@run.register
def _convert(config: StateConvert) -> int:
    suffix = pathlib.Path(config.output).suffix
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{config.output}: the suffix must be one of {', '.join(SUFFIXES)}")
    if config.to is None and suffix not in OWN:
        raise CheckpointError(f"to: name the layout that {config.output} is to have, one of {', '.join(LAYOUTS)}")
    if config.to not in (None, *LAYOUTS):
        raise CheckpointError(f"to: unknown layout {config.to}; one of {', '.join(LAYOUTS)}")
    if config.to == "web-rwkv" and suffix == ".pth":
        raise CheckpointError(f"{config.output}: {LAYOUTS[config.to].tools} reads no .pth; end the name in .st")
    small = config.rank is not None or config.dtype != "float32"
    if small and config.to is not None:
        advice = "leave out --to, or use rwkv7 state truncate before"
        raise CheckpointError(f"to: {config.to} holds whole matrices of its own dtype, no --rank and --dtype; {advice}")
    loaded = load_state(config.file, config.layout)
    if config.to is None:
        _write(config.output, loaded.state, loaded, f"convert {config.file}", config.rank, config.dtype)
        if small:
            print(_left_out(config.output, loaded.state))
        return 0
    state = loaded.state
    export_state(config.output, state, layout=config.to, drop_shifts=config.drop_shifts)
    layers, heads, size, _ = state.wkv.shape
    tools = LAYOUTS[config.to].tools
    print(f"wrote {config.output}: {layers} layers, {heads} heads of {size}, layout {config.to} ({tools})")
    return 0


def load_state(path: str, layout: str | None) -> TunedState:
    """Reads a state file, or the state in a checkpoint of a run."""
    if not pathlib.Path(path).is_dir():
        return load_file(path, layout=layout)
    from experiments.commands.work import checkpoint_state

    return checkpoint_state.load_state(pathlib.Path(path))


def norms(state: State) -> str:
    """A line for each layer: norms, the largest magnitude, the largest stable rank of a head.

    Of an upscaled state the matrix S_0 alone is measured.
    """
    found = surgery.info(state._replace(wkv=_matrix(state)))
    head = ["layer", *(name.replace("_", " ") for name in found)]
    layers = [
        [layer, *(f"{value:.4g}" for value in values)] for layer, values in enumerate(zip(*found.values(), strict=True))
    ]
    return text_table([head, *layers])


def _pair(first: str, second: str, layout: str | None) -> tuple[TunedState, TunedState]:
    """Both files.

    Raises:
      CheckpointError: they were tuned on different models.
    """
    one, two = load_state(first, layout), load_state(second, layout)
    bases = [loaded.metadata.get("base_model_hash", "") for loaded in (one, two)]
    if all(bases) and bases[0] != bases[1]:
        raise CheckpointError(
            f"{first} was tuned on the base model {bases[0][:16]}, {second} on {bases[1][:16]}: states of one model "
            "can be combined"
        )
    return one, two


def _left_out(path: str, state: State) -> str:
    """How far a small file is from its state, and how small it is."""
    difference = _norm(surgery.diff(state, load_file(path).state)) / max(_norm(state), np.finfo(np.float64).tiny)
    size, whole = pathlib.Path(path).stat().st_size, 4 * np.asarray(_matrix(state)).size
    return f"leaves out {difference:.4f} of the norm; {size / 1e3:.1f} kB, whole in float32 {whole / 1e3:.1f} kB"


def _write(
    path: str,
    state: State,
    origin: TunedState,
    made_by: str,
    rank: int | None = None,
    dtype: SmallDtype = "float32",
) -> None:
    """Our own file, with the metadata of the state that it comes from; measurements are not carried over."""
    if pathlib.Path(path).suffix not in OWN:
        raise CheckpointError(f"{path}: the suffix must be one of {', '.join(OWN)}; rwkv7 state convert writes others")
    kept = {name: text for name, text in origin.metadata.items() if name in ("base_model_hash", "method", "config")}
    metadata = {**kept, "made_by": f"rwkv7 state {made_by}"}
    save_state(path, jax.tree.map(np.asarray, state), metadata=metadata, rank=rank, dtype=dtype)
    print(f"wrote {path}")


def _matrix(state: State) -> jax.Array:
    return getattr(state.wkv, "s", state.wkv)


def _norm(state: State) -> float:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state)]
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in leaves)))


def _short(text: str) -> str:
    """One line of a field."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."
