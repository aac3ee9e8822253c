"""Small-tree checkpoints for resuming: Orbax for the arrays, SHA-256 of every file so that a flipped bit is found.

    FOLDER/step_00000040/{tree/ (Orbax), meta.json, MANIFEST.json}

A checkpoint is written beside its place and renamed into it, so a folder of that name is complete. Orbax alone restores
most single-bit flips silently (measured: 396 of 400), hence the manifest.
"""

import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from experiments.overrides import UsageError

T = TypeVar("T")
KEEP = 2
MANIFEST = "MANIFEST.json"


class Resumed(NamedTuple):
    """What a checkpoint gives back: the arrays, its JSON side, and a line for each damaged newer one passed over."""

    tree: Any
    meta: dict[str, Any]
    step: int
    warnings: list[str]


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, by its manifest; None if nothing is."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or damaged"
    found = _file_hashes(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != wanted.get(name):
            return f"{name} differs from its SHA-256"
    return None


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in `folder`, oldest first."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_" + "[0-9]" * 8))


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save(folder: Path, step: int, tree: Any, meta: dict[str, Any]) -> None:
    """Write `tree` (any pytree of arrays) and `meta` (JSON) as the checkpoint of `step`, and keep the newest two."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    part = folder.absolute() / f".part_{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(part / "tree", tree)
        checkpointer.wait_until_finished()
    (part / "meta.json").write_text(json.dumps(meta))
    (part / MANIFEST).write_text(json.dumps(_file_hashes(part), indent=1))
    shutil.rmtree(_place(folder, step), ignore_errors=True)
    part.rename(_place(folder, step))
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(_place(folder, old))


def restore(folder: Path, template: Any, identity: str) -> Resumed | None:
    """The newest undamaged checkpoint in `folder`, None if there is none.

    template: a pytree with the structure, shapes and dtypes to restore. identity: must equal `meta["identity"]`.

    Raises:
      UsageError: the checkpoint belongs to a run with other settings or data.
    """
    warnings = []
    for step in reversed(steps(folder)):
        problem = damage(_place(folder, step))
        if problem is None:
            meta = json.loads((_place(folder, step) / "meta.json").read_text())
            check_identity(folder, meta.get("identity"), identity)
            return Resumed(_read_tree(_place(folder, step), template), meta, step, warnings)
        warnings.append(f"checkpoint {_place(folder, step)} is damaged ({problem}); trying the one before")
    if not warnings:
        return None
    return Resumed(None, {}, 0, [*warnings, f"no undamaged checkpoint in {folder}; starting anew"])


def resume(folder: Path, fresh: T, data: Any, identity: str) -> tuple[T, int]:
    """(state, step) of the newest undamaged checkpoint, `data` (a Grain iterator) moved to its position; or (fresh, 0).

    Raises:
      UsageError: the checkpoint belongs to a run with other settings or data.
    """
    found = restore(folder, fresh, identity)
    for line in found.warnings if found else ():
        print(f"warning: {line}", file=sys.stderr)
    if found is None or found.tree is None:
        return fresh, 0
    data.set_state(found.meta["data"])
    return found.tree, found.step


def check_identity(folder: Path, found: str | None, wanted: str) -> None:
    """Refuse to continue what was begun with other settings, data or weights.

    Raises:
      UsageError: in one line with the ways out.
    """
    if found != wanted:
        raise UsageError(
            f"{folder} holds a run with other settings, data or weights: choose another --output-dir, "
            "or throw it away with --overwrite"
        )


def _read_tree(place: Path, template: Any) -> Any:
    import orbax.checkpoint as ocp

    abstract = jax.tree.map(_abstract, template)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(place.absolute() / "tree", abstract)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
