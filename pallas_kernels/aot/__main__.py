"""What the compiler says of every kernel, for hardware that is not attached.

    python -m pallas_kernels.aot --target v5e [--shape B,T,H,N] [--json PATH]
    python -m pallas_kernels.aot --target h200 [--shape B,T,H,N] [--resets] [--all] [--json PATH]

Needs the extra `aot`: libtpu for a TPU; a CUDA plugin of JAX and ptxas for a GPU.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from pallas_kernels.aot import gpu, nvidia, table, tpu


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """Reads "B,T,H,N", with K = V = N."""
    try:
        batch, length, heads, size = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write B,T,H,N, for example 8,4096,32,64") from None
    if min(batch, length, heads, size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: every size must be at least 1")
    return batch, length, heads, size


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if a kernel does not compile, 2 if nothing can be compiled here."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.aot", description="Compile the kernels for hardware that is not attached."
    )
    parser.add_argument("--target", required=True, choices=[*tpu.TARGETS, *nvidia.TARGETS])
    parser.add_argument("--shape", type=parse_shape, default=(8, 4096, 32, 64), help="B,T,H,N (default 8,4096,32,64)")
    parser.add_argument("--resets", action="store_true", help="with resets in the inputs (GPU)")
    parser.add_argument("--all", action="store_true", help="every shape of the committed tables (GPU)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    try:
        rows = _rows(options.target, options.shape, options.resets, options.all)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(table.text(rows))
    if options.json:
        options.json.write_text(table.to_json(rows), encoding="utf-8")
    return int(any(row.status != table.COMPILED for row in rows))


def _rows(target: str, shape: tuple[int, ...], resets: bool, everything: bool) -> list[table.Row]:
    """Raises:
    ValueError: an option that the target has not.
    """
    if target not in tpu.TARGETS:
        return gpu.rows(target, nvidia.CASES if everything else [nvidia.Case(shape, resets)])
    if resets or everything:
        raise ValueError("--resets and --all are for GPUs: leave them out for a TPU")
    return tpu.rows(target, shape)


if __name__ == "__main__":
    sys.exit(main())
