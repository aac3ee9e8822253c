"""The folder of a run's checkpoints as files: which are complete, which are damaged, which are thrown away."""

import hashlib
import itertools
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict

from rwkv7_jax.terminal import readable

MANIFEST, META, TREE = "MANIFEST.json", "meta.json", "tree"


class Position(TypedDict, total=False):
    """Where a loop stands besides its step; see `experiments.training.steps.Steps`."""

    drawn: int
    bad: int
    rollbacks: int


class Meta(TypedDict, total=False):
    """The JSON side of a checkpoint."""

    identity: str
    """Of the run that it belongs to."""
    anchor: bool
    """Whether a rollback may go there."""
    data: dict[str, object]
    """The position of the training data."""
    loop: Position
    seconds: dict[str, float]
    """Of `goodput.Ledger.snapshot`."""
    metrics: dict[str, float]


class Keep(NamedTuple):
    """Which checkpoints stay: the newest, and besides them the best by a metric (the least value is the best)."""

    newest: int = 2
    best: int = 0
    metric: str = "loss"


def place(folder: Path, step: int) -> Path:
    """Returns where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def part(folder: Path, step: int) -> Path:
    """Returns where it is written before it is complete."""
    return folder.absolute() / f".part_{step:08d}"


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `folder`, oldest first."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_" + "[0-9]" * 8))


def meta(folder: Path, step: int) -> Meta:
    """Reads the JSON side of a checkpoint."""
    return json.loads((place(folder, step) / META).read_text(encoding="utf-8"))


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 (hex) of every file under `folder` but the manifest; files are read side by side."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [str(path.relative_to(folder)) for path in files]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """Returns what is wrong with the checkpoint in `folder`, by its manifest; None if nothing is."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict):
        return f"{MANIFEST} is missing or damaged"
    found = file_hashes(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{readable(name, 200)} is missing"
        if found[name] != wanted.get(name):
            return f"{readable(name, 200)} differs from its SHA-256"
    return None


def check_renames(folder: Path) -> None:
    """Checks that a folder with a file in it can be renamed in `folder`, as Orbax and `publish` do.

    Raises:
      OSError: it cannot, as in a bucket that is mounted without leave for it.
    """
    source, target = folder / ".part_probe", folder / ".part_renamed"
    try:
        for path in (source, target):
            shutil.rmtree(path, ignore_errors=True)
        source.mkdir()
        (source / "file").touch()
        source.rename(target)
    except OSError as error:
        raise OSError(
            f"{folder}: checkpoints cannot be kept here, a folder cannot be renamed ({error.strerror}); a bucket needs "
            "gcsfuse --rename-dir-limit 100000"
        ) from None
    finally:
        for path in (source, target):
            shutil.rmtree(path, ignore_errors=True)


def publish(folder: Path, step: int, described: str) -> None:
    """Makes the written arrays of a step a checkpoint: JSON side, manifest and, last of all, its name."""
    source, target = part(folder, step), place(folder, step)
    (source / META).write_text(described, encoding="utf-8")
    (source / MANIFEST).write_text(json.dumps(file_hashes(source), indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def prune(folder: Path, keep: Keep) -> None:
    """Removes the checkpoints that `keep` does not name; the newest with a true `anchor` in its JSON side stays."""
    found = steps(folder)
    kept = [*found[-keep.newest :], *itertools.islice(filter(lambda x: _is_anchor(folder, x), reversed(found)), 1)]
    if keep.best:
        kept = [*kept, *sorted(found, key=lambda step: _value(folder, step, keep.metric))[: keep.best]]
    for step in set(found) - set(kept):
        shutil.rmtree(place(folder, step))


def _is_anchor(folder: Path, step: int) -> bool:
    try:
        return bool(meta(folder, step).get("anchor"))
    except (OSError, ValueError):
        return False


def _value(folder: Path, step: int, metric: str) -> float:
    """A checkpoint's metric; infinite if it is unknown or not finite."""
    try:
        value = float(meta(folder, step).get("metrics", {})[metric])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return value if math.isfinite(value) else math.inf


def discard_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps, newest first."""
    for later in reversed(steps(folder)):
        if later > step:
            shutil.rmtree(place(folder, later))
