"""`python -m rwkv7_jax.checkpoint inspect PATH`, `convert IN OUT` and `state IN OUT --layout NAME` (state files)."""

import argparse
import pathlib
import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np

from rwkv7_jax.checkpoint import (
    LAYOUTS,
    CheckpointError,
    export_state,
    load,
    load_state,
    params_to_flat,
    pth,
    rwkv_cpp,
    safetensors,
    weights_hash,
)
from rwkv7_jax.checkpoint.names import flat_to_params
from rwkv7_jax.terminal import exit_status

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STATE_SUFFIXES = (".pth", ".safetensors", ".st")
Tensors = dict[str, np.ndarray]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    return exit_status(lambda: run(args), "interrupted; nothing was written")


def run(args: argparse.Namespace) -> int:
    """Do what the command says. Raises: ValueError, OSError."""
    if args.command == "inspect":
        print(load(args.path).report)
    elif args.command == "convert":
        convert(args.source, args.target, args.dtype)
    else:
        convert_state(args.source, args.target, args.layout, args.source_layout, args.drop_shifts)
    return 0


def convert(source: str, target: str, dtype: str | None = None) -> None:
    """Read any format and write the one that the suffix of `target` names. Raises: CheckpointError."""
    writer = WRITERS.get(pathlib.Path(target).suffix)
    if writer is None:
        raise CheckpointError(f"{target}: the suffix must be one of {', '.join(WRITERS)}")
    checkpoint = load(source)
    print(checkpoint.report)
    flat = params_to_flat(checkpoint.params)
    if dtype == "float16" and writer is _write_rwkv_cpp:
        rwkv_cpp.write(target, flat, "FP16")  # which casts matrices alone
    else:
        writer(target, {name: _cast(name, array, dtype) for name, array in flat.items()} if dtype else flat)
    print(f"wrote         {target}")


def convert_state(source: str, target: str, layout: str, source_layout: str | None, drop_shifts: bool) -> None:
    """Read a state file and write it as another tool wants it. Raises: CheckpointError."""
    if pathlib.Path(target).suffix not in STATE_SUFFIXES:
        raise CheckpointError(f"{target}: the suffix must be one of {', '.join(STATE_SUFFIXES)}")
    state = load_state(source, layout=source_layout).state
    export_state(target, state, layout=layout, drop_shifts=drop_shifts)
    layers, heads, size, _ = state.wkv.shape
    print(f"wrote {target}: {layers} layers, {heads} heads of {size}, layout {layout} ({LAYOUTS[layout].tools})")


def _write_safetensors(path: str, flat: Tensors) -> None:
    safetensors.write(path, flat, {"format": "pt", "weights_hash": weights_hash(flat_to_params(flat))})


def _write_rwkv_cpp(path: str, flat: Tensors) -> None:
    half = flat["head.weight"].dtype == np.float16
    rwkv_cpp.write(path, flat, "FP16" if half else "FP32")


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[dtype])
    if not np.isfinite(out.astype(np.float32)).all() and np.isfinite(array.astype(np.float32)).all():
        raise CheckpointError(f"{name} has values that {dtype} cannot hold; choose float32 or bfloat16")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv7_jax.checkpoint", description="Look at and convert checkpoints."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print what is in a checkpoint")
    inspect.add_argument("path", help=".pth, .safetensors, Hugging Face folder or rwkv.cpp .bin")
    change = commands.add_parser("convert", help="write a checkpoint in another format")
    change.add_argument("source", help="any checkpoint that inspect reads")
    change.add_argument("target", help="file to write; .safetensors, .pth or .bin (rwkv.cpp)")
    state = commands.add_parser("state", help="write a state file as another tool wants it")
    state.add_argument("source", help="a state file: ours, .pth, .safetensors or .st")
    state.add_argument("target", help="file to write; .pth, .safetensors or .st")
    state.add_argument("--layout", choices=LAYOUTS, required=True, help="axis order and dtype of the target")
    state.add_argument("--source-layout", choices=LAYOUTS, help="of a file that is not ours and does not tell itself")
    state.add_argument("--drop-shifts", action="store_true", help="leave out token-shift states the target cannot hold")
    change.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: keep them as they are)")
    return parser


WRITERS: dict[str, Callable[[str, Tensors], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": pth.write,
    ".bin": _write_rwkv_cpp,
}

if __name__ == "__main__":
    sys.exit(main())
