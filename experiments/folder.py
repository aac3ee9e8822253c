"""The output folder of a run: claimed once for one set of settings, data and weights, and found again to resume."""

import json
import shutil
from pathlib import Path
from typing import Any

from experiments import checkpoint
from experiments.config import RunConfig, resolved
from experiments.overrides import UsageError

RUN_FILE = "run.json"
TRIES_FILE = "rates.jsonl"
SEARCHED = (TRIES_FILE, "states")
"""What `experiments.table.rates` leaves in the folder of the table that it searches for."""


def claim(config: RunConfig, identity: str) -> bool:
    """Make the folder ready and write the resolved config into it; True if an earlier, equal run continues.

    Raises:
      UsageError: the folder holds another run, or one not to be resumed, or other files (never thrown away).
    """
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output_dir: {folder} is a file")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RUN_FILE not in found and found - set(SEARCHED):
        raise UsageError(f"output_dir: {folder} holds other files; choose another --output-dir")
    if (folder / RUN_FILE).is_file() and config.overwrite:
        shutil.rmtree(folder)
    if (folder / RUN_FILE).is_file():
        if config.resume == "no":
            raise UsageError(
                f"{folder} holds an earlier run: choose another --output-dir, --overwrite, or --resume auto"
            )
        checkpoint.check_identity(folder, read(folder).get("identity"), identity)
        return True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps({"identity": identity, "config": resolved(config)}, indent=1) + "\n")
    return False


def read(folder: Path) -> dict[str, Any]:
    """What `claim` wrote; empty if it is damaged."""
    try:
        return json.loads((folder / RUN_FILE).read_text())
    except ValueError:
        return {}
