"""Checkpoints and state files: one module a format, each to and from the same parameter tree.

    checkpoint = load("RWKV-x070-World-0.1B.pth")       # or safetensors, a Hugging Face folder, rwkv.cpp .bin
    print(checkpoint.report)
    save("weights.safetensors", checkpoint.params)

`rwkv7 inspect PATH` prints the report, `rwkv7 convert IN OUT` changes the format.
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import PyTree
from numpy.typing import DTypeLike

from rwkv7_jax.checkpoint import foreign, pth, quantised_file, rwkv_cpp, safetensors
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, guard, some
from rwkv7_jax.checkpoint.import_report import ImportReport
from rwkv7_jax.checkpoint.layouts import is_folded, to_released, unfold
from rwkv7_jax.checkpoint.lazy import Tensor
from rwkv7_jax.checkpoint.names import (
    UNUSED,
    expected_shapes,
    flat_to_params,
    infer_config,
    not_finite,
    params_to_flat,
    weights_hash,
    with_one_dtype,
)
from rwkv7_jax.checkpoint.rwkv_list import from_rwkv_list, to_rwkv_list
from rwkv7_jax.checkpoint.state_layouts import LAYOUTS
from rwkv7_jax.checkpoint.states import (
    TIME_STATE,
    LayoutGuess,
    TunedState,
    detect_layout,
    export_state,
    load_state,
    read_state_tensors,
    save_state,
    state_metadata,
)
from rwkv7_jax.config import RWKV7Config

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "ImportReport",
    "LayoutGuess",
    "TunedState",
    "detect_format",
    "detect_layout",
    "export_state",
    "flat_to_params",
    "from_rwkv_list",
    "infer_config",
    "load",
    "load_state",
    "params_to_flat",
    "read_state_tensors",
    "save",
    "save_state",
    "state_metadata",
    "to_rwkv_list",
    "weights_hash",
]

Format = Literal["pth", "safetensors", "rwkv_cpp"]
MERGED = (
    "{} time_state tensors, a state merged into the model, are left out; `rwkv7 state convert FILE --layout LAYOUT "
    "--to value_key --output STATE.pth` writes them alone"
)
FOLDED = "no blocks.0.ln0: the embedding counts as normalised, and is scaled before a norm that undoes the scale"


class Checkpoint(NamedTuple):
    """An imported model."""

    config: RWKV7Config
    """Dimensions, from the shapes of the tensors."""
    params: dict[str, PyTree]
    """The parameter tree: numpy arrays in the file's dtype, emb and head memory-mapped."""
    report: ImportReport
    """What was found; `print` shows it."""


def load(
    path: PathLike, *, format: Format | None = None, lazy: bool = False, mixed: DTypeLike | None = None
) -> Checkpoint:
    """Reads a checkpoint of any supported format.

    Args:
      path: a BlinkDL `.pth`, safetensors, a Hugging Face folder, or rwkv.cpp's `.bin`.
      format: which of these it is; None tells it by the content, whatever the name.
      lazy: load no weights; stacked ones are `names.Stacked` (see `rwkv7_jax.sharding.place`).
      mixed: the dtype of tensors whose layers have different dtypes; None refuses them.

    Returns:
      Dimensions, weights in the file's dtype, and a report.

    Raises:
      CheckpointError: one line with the path, for whatever is not a complete, sound RWKV-7 checkpoint.
      FileNotFoundError: there is no such file.

    Example:
      >>> import jax, os, tempfile
      >>> from rwkv7_jax import RWKV7, RWKV7Config, load_checkpoint, save_checkpoint
      >>> from rwkv7_jax.model import init_params
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> model = RWKV7(RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4))
      >>> save_checkpoint(path, init_params(model, jax.random.key(0)))
      >>> load_checkpoint(path).config.n_layer
      2
    """
    return opened(path, format=format, lazy=lazy, mixed=mixed).checked()


class Opened(NamedTuple):
    """A checkpoint of which the shapes are checked, and the numbers are not."""

    config: RWKV7Config
    """Dimensions, from the shapes of the tensors."""
    params: dict[str, PyTree]
    """The parameter tree, as in `Checkpoint`."""
    checked: Callable[[], Checkpoint]
    """Reads all weights once and returns what `load` returns; raises what it raises of damaged weights."""


def opened(
    path: PathLike, *, format: Format | None = None, lazy: bool = False, mixed: DTypeLike | None = None
) -> Opened:
    """Reads the head of a checkpoint, so that a program can be compiled while its weights are checked; as `load`."""
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder; check the path")
    with guard(path, "an RWKV-7 checkpoint"):
        file = foreign.meant(pathlib.Path(path))
        flat, description, metadata = _read(file, format or detect_format(file))
        flat = flat if mixed is None else with_one_dtype(flat, mixed)
        notes: tuple[str, ...] = ()
        if "emb.weight" in flat and (merged := [name for name in flat if TIME_STATE.fullmatch(name)]):
            flat = {name: array for name, array in flat.items() if name not in merged}
            notes = (MERGED.format(len(merged)),)
        if is_folded(flat):
            flat, notes = unfold(flat), (*notes, FOLDED)
        config, params = infer_config(flat), flat_to_params(flat, lazy=lazy)

    def checked() -> Checkpoint:
        found = notes
        with guard(path, "an RWKV-7 checkpoint"):
            quantised = metadata.get("layout") == quantised_file.LAYOUT
            digest = metadata.get("weights_hash", "") if quantised else weights_hash(params)
            if metadata.get("weights_hash", digest) != digest:
                raise CheckpointError(
                    "the weights do not match the hash stored with them: damaged; copy the file again"
                )
            if broken := not_finite(params):
                found += (f"NaN or infinite numbers in {some(broken)}",)
        if broken:
            warnings.warn(f"{path}: NaN or infinite numbers in {some(broken)}", stacklevel=3)
        return Checkpoint(config, params, _report(path, description, config, flat, digest, found))

    return Opened(config, params, checked)


def save(path: PathLike, params: Mapping[str, PyTree]) -> None:
    """Writes weights atomically as safetensors, with the released names and shapes and a hash that `load` checks.

    Args:
      path: the file.
      params: the parameter tree, its blocks stacked or not.

    Raises:
      CheckpointError: a dtype that safetensors cannot hold.
    """
    metadata = {"format": "pt", "layout": "released", "weights_hash": weights_hash(params)}
    safetensors.write(path, params_to_flat(params), metadata)


def detect_format(path: PathLike) -> Format:
    """Tells the format of a checkpoint by its first bytes, whatever its name.

    Args:
      path: a file, or a Hugging Face folder, which counts as safetensors.

    Returns:
      "pth", "safetensors" or "rwkv_cpp".

    Raises:
      CheckpointError: one line, for anything else.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return "safetensors"
    with guard(path, "a checkpoint"), path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download or export it again")
    if head.startswith((pth.MAGIC, pth.PICKLE)):
        return "pth"
    if head[:4] == rwkv_cpp.MAGIC.to_bytes(4, "little"):
        return "rwkv_cpp"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= safetensors.MAX_HEADER:
        return "safetensors"
    if sign := foreign.sign_of(head):
        raise CheckpointError(f"{path}: {sign}")
    kind = "a text file" if all(byte in b"\t\n\r" or byte >= 0x20 for byte in head) else "an unknown kind of file"
    raise CheckpointError(
        f"{path}: {kind}, not a checkpoint; pass a BlinkDL .pth, safetensors, a Hugging Face folder or an rwkv.cpp .bin"
    )


def _read(path: PathLike, format: Format) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Returns (tensors by released name, description of the format, metadata)."""
    if format == "pth":
        tensors, layout = to_released(pth.read_tensors(path))
        return dict(tensors), f"torch .pth ({layout} names)", {}
    if format == "rwkv_cpp":
        tensors = rwkv_cpp.read(path)
        half = any(array.dtype == np.float16 for array in tensors.values())
        return tensors, f"rwkv.cpp .bin ({'FP16' if half else 'FP32'})", {}
    if format == "safetensors":
        found = safetensors.read_described(path)
        if found.metadata.get("layout") == quantised_file.LAYOUT:
            return quantised_file.joined(found.tensors, found.metadata), "safetensors (quantised)", found.metadata
        return dict(found.tensors), f"safetensors ({found.layout} names)", found.metadata
    raise CheckpointError(f"unknown format {format}; one of pth, safetensors, rwkv_cpp")


def _report(
    path: PathLike,
    description: str,
    config: RWKV7Config,
    flat: Mapping[str, Tensor],
    digest: str,
    notes: tuple[str, ...],
) -> ImportReport:
    used = [flat[name] for name in expected_shapes(config)]
    note = f"group norm epsilon is 64e-5 here; {description} models with heads of {config.head_size} may scale it"
    foreign = config.head_size != 64 and ("fla" in description or "transformers" in description)
    return ImportReport(
        path=str(path),
        format=description,
        config=config,
        parameter_count=sum(array.size for array in used),
        tensor_count=len(used),
        unused=tuple(name for name in UNUSED if name in flat),
        missing=(),
        dtypes=tuple(sorted({str(array.dtype) for array in used})),
        weights_hash=digest,
        notes=(*notes, note) if foreign else notes,
    )
