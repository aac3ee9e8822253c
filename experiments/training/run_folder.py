"""The output folder of a run: claimed once for one set of settings, data and weights, and found again to resume."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from experiments.config.overrides import UsageError
from experiments.reporting import json_file
from experiments.tasks import TASKS
from experiments.training import checkpoint
from rwkv7_jax import locks
from rwkv7_jax.checkpoint.files import clear_temporaries

RUN_FILE = "run.json"
TRIES_FILE = "rates.jsonl"
SEARCHED = (TRIES_FILE, "states")
"""What `rwkv7 study rates` leaves in the folder of the table that it searches for."""
PICTURES = ("loss", "reward", "accuracy", "scaling", "condition", "speed", "queries", "rates")
RESULTS = ("metrics.jsonl", ".metrics.jsonl", "cells.jsonl", "jsonl", *TASKS)
"""Files and folders with results, of a run (its jobs' folders) or of a table."""
WRITTEN = (*RESULTS, "states", "report.md", "results.json", *(f"{name}.png" for name in PICTURES), RUN_FILE)
"""All that a run or a table writes, last what marks the folder as its own."""


@contextlib.contextmanager
def held(folder: Path, *, lead: bool = True) -> Iterator[None]:
    """Keeps other processes out of the output folder within `with`; makes it, and removes it again if nothing came in.

    Files that a killed process has not finished are removed.

    Args:
      folder: the output folder.
      lead: whether this is the process that writes files; others do nothing.

    Raises:
      UsageError: it is a file.
      Locked: another process writes there.
    """
    if not lead:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output: {folder} is a file; choose another --output")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locks.lock(folder, "wait until it ends, or choose another --output"):
            clear_temporaries(folder)
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def check(folder: Path, identity: str, *, resume: bool = True, overwrite: bool = False) -> bool:
    """Returns whether an earlier, equal run continues in the folder; changes nothing.

    A run without results does not count: another one may take its folder.

    Args:
      folder: the output folder.
      identity: of settings, data and weights.
      resume: whether to continue an earlier run.
      overwrite: whether to throw an earlier run away.

    Raises:
      UsageError: the folder holds another run, or one not to be resumed, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output: {folder} is a file")
    found = {path.name for path in folder.iterdir()} - {locks.NAME} if folder.is_dir() else set()
    if RUN_FILE not in found and found - set(SEARCHED):
        raise UsageError(f"output: {folder} holds other files; choose another --output")
    if RUN_FILE not in found or overwrite:
        return False
    if not has_results(folder):
        return begun(folder) == identity
    identified = read(folder).get("identity")
    if not resume:
        raise UsageError(f"{folder} holds an earlier run: choose another --output, --overwrite, or --resume auto")
    checkpoint.check_identity(folder, identified, identity)
    return True


def claim(
    folder: Path,
    identity: str,
    settings: Mapping[str, object],
    *,
    resume: bool = True,
    overwrite: bool = False,
    further: Mapping[str, object] = MappingProxyType({}),
) -> bool:
    """Makes the folder ready and writes the settings into it.

    `overwrite` throws away everything that an earlier run wrote, and nothing else.

    Args:
      folder: the output folder.
      identity: of settings, data and weights.
      settings: the resolved config, for run.json.
      resume: whether to continue an earlier run.
      overwrite: whether to throw an earlier run away.
      further: more for run.json.

    Returns:
      Whether an earlier, equal run continues.

    Raises:
      UsageError: as `check`.
    """
    if check(folder, identity, resume=resume, overwrite=overwrite):
        return True
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite and (folder / RUN_FILE).is_file():
        throw_away(folder, WRITTEN)
    record(folder, identity, settings, further)
    return False


def record(folder: Path, identity: str, settings: Mapping[str, object], further: Mapping[str, object]) -> None:
    """Writes run.json."""
    json_file.write(folder / RUN_FILE, {"identity": identity, "config": settings, **further})


def join(folder: Path, identity: str) -> bool:
    """Joins what the lead has claimed; returns True, if it is the same run.

    Raises:
      UsageError: it is another one.
    """
    checkpoint.check_identity(folder, read(folder).get("identity"), identity)
    return True


def has_results(folder: Path) -> bool:
    """Returns whether a run has got so far that something would be lost with it."""
    files = (path for name in RESULTS for path in (folder / name, *(folder / name).rglob("*")))
    return any(path.is_file() and path.stat().st_size for path in files)


def throw_away(folder: Path, names: Sequence[str]) -> None:
    """Removes the files and folders of these names in `folder`, if they are there, in this order."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def begun(folder: Path) -> object:
    """Returns the identity of what was begun in the folder; None if that is not known."""
    try:
        return read(folder).get("identity")
    except (UsageError, OSError):
        return None


def read(folder: Path) -> dict[str, object]:
    """Returns what `claim` wrote.

    Raises:
      UsageError: it is damaged; in one line with the way out.
      OSError: it cannot be read.
    """
    try:
        return json_file.read(folder / RUN_FILE)
    except ValueError as error:
        raise UsageError(f"{error}: put it back, or throw the run away with --overwrite") from None
