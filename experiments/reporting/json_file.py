"""One JSON object a file, with a checksum: what a run keeps for its next session."""

from collections.abc import Mapping
from pathlib import Path

from experiments.reporting.json_text import json_text
from rwkv7_jax import checksums
from rwkv7_jax.checkpoint.files import write_text


def read(path: Path) -> dict[str, object]:
    """Returns the object that `write` wrote; files from before there were checksums are read too.

    Raises:
      ValueError: in one line with the path, what is wrong with the file.
      OSError: it cannot be read.
    """
    try:
        return checksums.unseal(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def write(path: Path, value: Mapping[str, object], indent: int | None = 1) -> None:
    """Writes the file atomically; numbers that are not finite become null."""
    write_text(path, checksums.seal(json_text(value, indent=indent)) + "\n")


def with_nan(value: object) -> object:
    """Returns a part of an object with NaN again where a number was not finite."""
    if isinstance(value, Mapping):
        return {name: with_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_nan(part) for part in value]
    return float("nan") if value is None else value
