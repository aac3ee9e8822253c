"""Parquet and Arrow files, as dataset hubs and `datasets.save_to_disk` write them; needs pyarrow."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from experiments.config.overrides import UsageError
from experiments.data.jsonl import Line
from experiments.tasks.types import Record


class Table(Protocol):
    """As pyarrow's."""

    num_rows: int
    nbytes: int

    def validate(self, *, full: bool) -> None:
        """Raises ArrowInvalid if offsets, lengths or texts are unsound: reading them would leave the file's memory."""
        ...

    def to_pylist(self) -> list[Record]:
        """Returns the rows."""
        ...


def read_parquet(path: Path) -> list[Line]:
    """Reads all rows. Raises UsageError: no pyarrow, or a damaged file."""
    parquet = _pyarrow("parquet")
    return _rows(path, lambda: parquet.read_table(path))


def read_arrow(path: Path) -> list[Line]:
    """Reads all rows of an IPC stream or file. Raises UsageError: no pyarrow, or a damaged file."""
    ipc, lib = _pyarrow("ipc"), _pyarrow("lib")

    def table() -> Table:
        data = path.read_bytes()
        try:
            return ipc.open_stream(data).read_all()
        except lib.ArrowInvalid:
            return ipc.open_file(data).read_all()

    return _rows(path, table)


def _rows(path: Path, table: Callable[[], Table]) -> list[Line]:
    try:
        found = table()
        if found.num_rows > 8 * max(found.nbytes, path.stat().st_size):  # less than a bit each: columns of null alone
            raise ValueError(f"{found.num_rows} rows without data")
        found.validate(full=True)
        rows = found.to_pylist()
    except Exception as error:  # of a damaged file the library raises SystemError and UnicodeDecodeError too
        raise UsageError(f"{path}: not readable ({' '.join(str(error).split())[:200]})") from None
    return [Line(row, f"{path}: row {number}") for number, row in enumerate(rows, 1)]


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise UsageError("parquet and arrow files need pyarrow: pip install pyarrow, or give jsonl or csv") from None
