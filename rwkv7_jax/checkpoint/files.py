"""What every checkpoint format shares: one-line errors, memory-mapped bytes, atomic writes."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import ml_dtypes
import numpy as np

PathLike = str | os.PathLike

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
"""How an address begins; `pathlib` makes one slash of two."""
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Names of files that `atomic` has not finished."""
WEIGHT_DTYPES = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)


class CheckpointError(ValueError):
    """A file that cannot be used: a `ValueError` of one line.

    Args:
      message: the path, what is wrong and what to do.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str, limit: int = 600) -> str:
    """Returns `text` without line breaks and control characters, cut to `limit` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 8 * limit].split()))
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def some(names: Iterable[str], limit: int = 4) -> str:
    """Lists the first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextlib.contextmanager
def guard(path: PathLike, kind: str) -> Iterator[None]:
    """Turns every error of a parser into one `CheckpointError` that starts with `path`.

    Raises:
      CheckpointError: the file is damaged or of another kind.
      FileNotFoundError: passed through.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        own = "; `rwkv7 state convert` makes one of a run's checkpoint" if "state" in kind else ""
        raise CheckpointError(f"{path} is a folder, not {kind}{own}") from None
    except CheckpointError as error:
        if str(error).startswith(one_line(str(path))):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged or not {kind} ({one_line(detail, 200)}); download or export the file again"
        ) from error


def mapped(path: PathLike) -> np.ndarray:
    """Maps the file's bytes, uint8 [size], read-only.

    Raises:
      CheckpointError: the file is empty.
    """
    path = pathlib.Path(path)
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; download or export it again")
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def view(data: np.ndarray, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Views `shape` numbers of `dtype` at byte `offset` of mapped bytes, read-only; copies only if misaligned."""
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    array = data[offset : offset + size].view(dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Errors of the system name the file that is written, not a temporary one or none."""
    try:
        yield
    except OSError as error:
        found = None if error.filename is None else pathlib.Path(os.fsdecode(error.filename)).name
        if error.errno is None or (found is not None and not found.startswith(f".{pathlib.Path(path).name}.")):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once all of it is written and synced; on failure `path` stays as it was.

    Raises:
      OSError: naming the path, if it cannot be written.
      ValueError: the path is an address, such as gs://bucket/file.
    """
    if ADDRESS.match(os.fsdecode(path)):
        raise ValueError(f"{path} is an address; give a local path (a bucket can be mounted)")
    path = pathlib.Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise


def clear_temporaries(folder: pathlib.Path) -> None:
    """Removes what `atomic` leaves in a folder where the process is killed; the caller writes there alone."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes a text file in UTF-8 atomically; parts of file names that are not UTF-8 keep their bytes."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
    with atomic(path) as file:
        file.write(data)


def raw_bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array in C order; copies only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
