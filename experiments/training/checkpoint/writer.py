"""Asynchronous saving: the step goes on as soon as the arrays have left the device."""

import errno
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from experiments.reporting.json_text import json_text
from experiments.training.checkpoint import files
from experiments.training.checkpoint.files import Keep, Meta
from rwkv7_jax.terminal import readable

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


UNBOUNDED = 10**9
"""Seconds. Orbax measures its time-outs by the wall clock, which may be set while it saves; one process waits for no
other, and its disk answers or fails."""
LACKS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.EFBIG))


_hooks = [sys.__unraisablehook__]
"""What was called before with exceptions that no caller gets."""


class Writer:
    """Saves into one folder, one at a time; a context manager, at whose end everything is on disk.

    `save` returns when the arrays are copied to the host; Orbax writes them in the background. Once it is done, a
    thread of process 0 adds the JSON side and the manifest and renames the folder into place. That thread only touches
    files and waits for Orbax, whose own barriers in the background go through the coordination service: no collective
    of devices ever runs beside those of a training step. The other processes need not know when it is done; whatever
    depends on it (`wait`, the next `save`, a restore) is a point that all processes reach together.
    """

    def __init__(self, folder: Path, keep: Keep | None = None):
        self.folder, self.keep = folder, keep or Keep()
        self._checkpointer: "ocp.StandardCheckpointer | None" = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def save(self, step: int, tree: PyTree, meta: Meta) -> None:
        """Begins to save `tree` (any pytree of arrays) and `meta` (JSON) as the checkpoint of `step`.

        Raises: what went wrong with the save before (OSError for a full disk).
        """
        self.wait()
        first = self._checkpointer is None
        self._checkpointer = self._checkpointer or _checkpointer()
        described = json_text(meta)
        try:
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.glob(".part_*"):
                    shutil.rmtree(left)
                if first:
                    files.check_renames(self.folder)
                files.part(self.folder, step).mkdir()
            barrier(f"checkpoint of step {step}")
            self._checkpointer.save(files.part(self.folder, step) / files.TREE, tree)
        except (OSError, ValueError) as error:
            raise _told(self.folder, step, error) from error
        if jax.process_index() == 0:
            finish = (self._checkpointer, step, described)
            self._thread = threading.Thread(target=self._finish, args=finish, name=f"checkpoint-{step}")
            self._thread.start()

    def _finish(self, checkpointer: "ocp.StandardCheckpointer", step: int, described: str) -> None:
        try:
            checkpointer.wait_until_finished()
            files.publish(self.folder, step, described)
            files.prune(self.folder, self.keep)
        except Exception as error:
            self._error = _told(self.folder, step, error)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Waits until the last save is complete on disk. Raises: what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._checkpointer is not None:
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Waits, then gives Orbax's threads back."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None


def save(folder: Path, step: int, tree: PyTree, meta: Meta) -> None:
    """Writes one checkpoint and waits until it is complete; the newest two are kept."""
    with Writer(folder) as writer:
        writer.save(step, tree, meta)


def barrier(name: str) -> None:
    """Waits for all processes; to be called from the main thread."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _checkpointer() -> "ocp.StandardCheckpointer":
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong in Orbax's threads is raised by `wait` too
    if sys.unraisablehook is not _without_closed_loops:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _without_closed_loops
    if jax.process_count() > 1:
        return ocp.StandardCheckpointer()
    return ocp.StandardCheckpointer(async_options=ocp.options.AsyncOptions(timeout_secs=UNBOUNDED))


def _without_closed_loops(told: "sys.UnraisableHookArgs") -> None:
    """Says nothing of writes that end in threads of their own after another one has failed, which is raised."""
    if not (told.exc_type is RuntimeError and str(told.exc_value) == "Event loop is closed"):
        _hooks[-1](told)


def _told(folder: Path, step: int, error: Exception) -> Exception:
    """What went wrong with a save, in one line that begins with its place."""
    if isinstance(error, OSError) and not error.strerror and not isinstance(error, TimeoutError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if lacks := next((text for text in LACKS if text.lower() in reason.lower()), None):
        reason = lacks
    advice = "make room, or choose another --output" if lacks else "see that the folder is there and can be written"
    return OSError(
        f"{files.place(folder, step)}: the checkpoint is not saved ({readable(reason, 200)}): {advice}; "
        "the same command goes on from the checkpoint before"
    )
