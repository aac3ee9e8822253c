"""Checks of files to write, before the work whose result they hold."""

import tempfile
from pathlib import Path

from experiments.config.overrides import UsageError


def check_writable(key: str, path: Path) -> None:
    """Refuses a file that could not be written, which otherwise shows only after the work.

    Raises:
      UsageError: in one line that starts with the setting's key.
    """
    if path.is_dir():
        raise UsageError(f"{key}: {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{key}: no folder {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{key}: {path} cannot be written ({error.strerror}); choose another file") from None
