"""The training loop of pre-training and state tuning: resume, draw, step, guard, log, save, stop.

    rows = train(Task("pretrain", step, data, ...), state, settings, Place(folder, folder, log, interrupt))

A generator: it yields each row of metrics.jsonl and returns the last state (`drain` is for who wants the state alone).
What happens at a step depends on the step's number and on what was computed, never on the time, so that a resumed run
takes the same steps. With several processes (`jax.distributed`) every one runs the loop, process 0 alone writes rows,
checkpoints' names and the ledger, and all stop after the same step.
"""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from experiments.config.loop import LoopConfig
from experiments.config.overrides import UsageError
from experiments.training.metrics_log import MetricsLog
from experiments.training.preemption import Interrupt
from experiments.training.steps import Steps

T = TypeVar("T")


class Task(NamedTuple):
    """What is trained."""

    name: str
    """The job in rows of metrics and in messages."""
    step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]]
    """(state, batch on the device) -> (state, metrics); the state may be donated. `applied` False among the metrics
    says that the update was not finite and left the state as it was."""
    data: Any
    """Iterator of host batches with `get_state()` (JSON) and `set_state()`, as Grain's; with several processes in the
    same state in all of them."""
    steps: int
    identity: str
    """Of settings, data and weights; a checkpoint of another is refused."""
    tokens: Callable[[Any], float]
    """Tokens of all processes in a step, from the host batch."""
    values: tuple[str, ...] = ("loss",)
    """Metrics that go into the rows, scalars."""
    put: Callable[[Any], Any] = jax.device_put
    """Host batch -> batch on the devices."""
    flops: float | None = None
    """Model FLOPs a token, for MFU."""
    evaluate: Callable[[Any], dict[str, float]] | None = None
    """state -> further values for the rows of every `evaluate_every` steps that are logged, and of the last."""
    evaluate_every: int = 1
    title: str | None = None
    """Of the progress bar; none: the name."""


class Place(NamedTuple):
    """Where a run is kept."""

    folder: Path
    """For goodput.json and the folders profile and tensorboard."""
    checkpoints: Path
    log: MetricsLog
    interrupt: Interrupt


def train(task: Task, state: T, settings: LoopConfig, place: Place) -> Generator[dict[str, Any], None, T]:
    """Go to the newest checkpoint, and return what trains from there (from `state`, if there is none) to the last step.

    state: on a mesh, every leaf has to be on it; a restored state is placed as this one is, which is let go first.

    Raises:
      UsageError: at once: the checkpoint belongs to another run, best_metric is unknown, or TensorBoard is missing.
      Interrupted: while training: after Ctrl-C or a notice of preemption, with everything saved.
      NonFiniteError: while training: too many non-finite updates in a row, and no way back.
    """
    if settings.keep_best and task.evaluate is None and settings.best_metric not in task.values:
        raise UsageError(f"best_metric: {settings.best_metric} is not among {', '.join(task.values)}")
    loop = Steps(task, state, settings, place)
    del state
    loop.resume()
    return _rows(loop)


def _rows(loop: Steps) -> Generator[dict[str, Any], None, Any]:
    task, settings, interrupt = loop.task, loop.settings, loop.place.interrupt
    started = loop.index
    with ExitStack() as stack:
        loop.open(stack)
        while loop.index < task.steps:
            loop.advance()
            last = loop.index == task.steps
            log, due = (last or loop.index % every == 0 for every in (settings.log_every, settings.checkpoint_every))
            if log or due:
                loop.examine()
                if loop.rolled_back():
                    continue
            if log:
                yield loop.log()
            interrupt.place = f"step {loop.index} of {task.name}"
            stop = interrupt.agreed(exchange=log or due)
            if stop or last or (due and not loop.bad):
                loop.save()
            if stop:
                interrupt.check()
    loop.ledger.write()
    if loop.first and loop.index > started:
        print(f"{task.name}: {loop.ledger.line()}", file=sys.stderr)
    return loop.state


def drain(rows: Generator[Any, None, T]) -> T:
    """The state that `train` returns, its rows not looked at."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value
