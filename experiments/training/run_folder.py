"""The output folder of a run: claimed once for one set of settings, data and weights, and found again to resume."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config.overrides import UsageError
from experiments.config.schema import RunConfig, resolved
from experiments.tasks import TASKS
from experiments.training import checkpoint

RUN_FILE = "run.json"
TRIES_FILE = "rates.jsonl"
SEARCHED = (TRIES_FILE, "states")
"""What `rwkv7 study rates` leaves in the folder of the table that it searches for."""
PICTURES = ("loss", "accuracy", "scaling", "condition", "speed", "queries", "rates")
RESULTS = ("metrics.jsonl", ".metrics.jsonl", "cells.jsonl", "jsonl", *TASKS)
"""Files and folders with results, of a run (its jobs' folders) or of a table."""
WRITTEN = (*RESULTS, "states", "report.md", "results.json", *(f"{name}.png" for name in PICTURES), RUN_FILE)
"""All that a run or a table writes, last what marks the folder as its own."""


def check(config: RunConfig, identity: str) -> bool:
    """Whether an earlier, equal run continues in the folder; changes nothing. One without results is in nobody's way.

    Raises:
      UsageError: the folder holds another run, or one not to be resumed, or other files.
    """
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output: {folder} is a file")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RUN_FILE not in found and found - set(SEARCHED):
        raise UsageError(f"output: {folder} holds other files; choose another --output")
    if RUN_FILE not in found or config.overwrite:
        return False
    begun = read(folder).get("identity")
    if not has_results(folder):
        return begun == identity
    if config.resume == "no":
        raise UsageError(f"{folder} holds an earlier run: choose another --output, --overwrite, or --resume auto")
    checkpoint.check_identity(folder, begun, identity)
    return True


def claim(config: RunConfig, identity: str) -> bool:
    """Make the folder ready and write the resolved config into it; True if an earlier, equal run continues.

    `overwrite` throws away everything that an earlier run wrote, and nothing else.

    Raises:
      UsageError: as `check`.
    """
    if check(config, identity):
        return True
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite and (folder / RUN_FILE).is_file():
        throw_away(folder, WRITTEN)
    (folder / RUN_FILE).write_text(json.dumps({"identity": identity, "config": resolved(config)}, indent=1) + "\n")
    return False


def join(config: RunConfig, identity: str) -> bool:
    """For a process that joins what the lead has claimed: True, if it is the same run.

    Raises:
      UsageError: it is another one.
    """
    checkpoint.check_identity(config.folder, read(config.folder).get("identity"), identity)
    return True


def has_results(folder: Path) -> bool:
    """Whether a run has got so far that something would be lost with it."""
    files = (path for name in RESULTS for path in (folder / name, *(folder / name).rglob("*")))
    return any(path.is_file() and path.stat().st_size for path in files)


def throw_away(folder: Path, names: Sequence[str]) -> None:
    """Remove the files and folders of these names in `folder`, if they are there, in this order."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """What `claim` wrote; empty if it is damaged."""
    try:
        return json.loads((folder / RUN_FILE).read_text())
    except ValueError:
        return {}
