"""Restoring: the newest undamaged checkpoint, onto whatever devices the template says."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from experiments.config.overrides import UsageError
from experiments.training.checkpoint import files
from experiments.training.checkpoint.files import Meta


class Found(NamedTuple):
    """A checkpoint chosen: its step (0: none is undamaged), JSON side, and a line for each damaged newer one."""

    step: int
    meta: Meta
    warnings: list[str]


class Resumed(NamedTuple):
    """What a checkpoint gives back: the arrays, its JSON side, and a line for each damaged newer one passed over."""

    tree: PyTree
    meta: Meta
    step: int
    warnings: list[str]


def find(folder: Path, identity: str, usable: Callable[[Meta], bool] = lambda meta: True) -> Found | None:
    """Returns the newest undamaged checkpoint in `folder` whose JSON side is `usable`, None if there is none at all.

    With several processes all of them call this; process 0 looks and warns.

    Raises:
      UsageError: the checkpoint belongs to a run with other settings or data.
    """
    step, warnings = _choose(folder, usable) if jax.process_index() == 0 else (0, [])
    step = _from_first(step)
    if step:
        meta = files.meta(folder, step)
        check_identity(folder, meta.get("identity"), identity)
        return Found(step, meta, warnings)
    return Found(0, {}, [*warnings, f"no undamaged checkpoint in {folder}; starting anew"]) if warnings else None


def restore(folder: Path, template: PyTree, identity: str) -> Resumed | None:
    """Returns what `find` chooses, read onto the devices of `template` (see `read`); None if there is no checkpoint.

    Raises:
      UsageError: the checkpoint belongs to a run with other settings or data.
    """
    found = find(folder, identity)
    if found is None:
        return None
    tree = read(folder, found.step, template) if found.step else None
    return Resumed(tree, found.meta, found.step, found.warnings)


def _choose(folder: Path, usable: Callable[[Meta], bool]) -> tuple[int, list[str]]:
    """(the step to restore or 0, a line for each damaged newer one)."""
    warnings = []
    for step in reversed(files.steps(folder)):
        problem = files.damage(files.place(folder, step))
        if problem is not None:
            warnings.append(f"checkpoint {files.place(folder, step)} is damaged ({problem}); trying the one before")
        elif usable(files.meta(folder, step)):
            return step, warnings
    return 0, warnings


def _from_first(value: int) -> int:
    """Process 0's value in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def check_identity(folder: Path, found: object, wanted: str, option: str = "--output") -> None:
    """Refuses to continue what was begun with other settings, data or weights. option: what names the folder.

    Raises:
      UsageError: in one line with the ways out.
    """
    if found != wanted:
        raise UsageError(
            f"{folder} holds a run with other settings, data or weights: choose another {option}, "
            "or throw it away with --overwrite"
        )


def read(folder: Path, step: int, template: PyTree) -> PyTree:
    """Reads the arrays of a checkpoint.

    template: a pytree of arrays or `abstract` ones with the structure, shapes and dtypes that were saved; its
    shardings, which need not be those that were saved, say where they go.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(files.place(folder, step).absolute() / files.TREE, abstract(template))


def abstract(tree: PyTree) -> PyTree:
    """Returns shapes, dtypes and shardings alone, which hold no memory."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)), tree
    )
