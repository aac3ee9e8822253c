"""Profiler traces and TensorBoard."""

import importlib.util
from pathlib import Path
from typing import Protocol

import jax
from jaxtyping import PyTree

from experiments.config.overrides import UsageError
from experiments.training.metrics_log import Row


class ScalarWriter(Protocol):
    """A writer of TensorBoard's event files."""

    def add_scalar(self, name: str, value: float, step: int, /) -> object:
        """Writes a number at a step."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class Profile:
    """A `jax.profiler` trace of `steps` steps from step `start` on, in `folder`; start 0: none."""

    def __init__(self, folder: Path, start: int, steps: int):
        self.folder, self.start, self.last, self.running = folder, start, start + steps - 1, False

    def before(self, step: int) -> None:
        """Begins the trace if this step is its first."""
        if self.start and step == self.start:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int, result: PyTree) -> None:
        """Ends it after its last step, once `result` is computed."""
        if self.running and step >= self.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that still runs."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


class Board:
    """Scalars for TensorBoard, by whichever writer is installed; does nothing unless `enabled`.

    Raises:
      UsageError: none is installed.
    """

    def __init__(self, folder: Path, enabled: bool):
        self._writer: ScalarWriter | None = None
        if not enabled:
            return
        if importlib.util.find_spec("tensorboardX"):
            self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))
        elif importlib.util.find_spec("tensorboard"):
            self._writer = importlib.import_module("tensorboard.summary").Writer(str(folder))
        else:
            raise UsageError("tensorboard: no writer is installed: pip install tensorboardX, or set it to false")

    def add(self, row: Row) -> None:
        """Writes all numbers of a row of metrics.jsonl at its step."""
        if self._writer is not None:
            for name, value in {**row, **row.get("timing", {})}.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
