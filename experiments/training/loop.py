"""The training loop of pre-training and state tuning: resume, draw, step, guard, log, save, stop.

    rows = train(Task("pretrain", step, data, ...), state, settings, Place(folder, folder, log, interrupt))

A generator: it yields each row of metrics.jsonl and returns the last state (`drain` is for callers who want the state
alone). What happens at a step depends on the step's number and on what was computed, never on the time, so that a
resumed run takes the same steps. With several processes (`jax.distributed`) every one runs the loop, process 0 alone
writes rows, checkpoints' names and the ledger, and all stop after the same step.

`take_steps` is the loop of short runs in memory, without files and other processes.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Generic, NamedTuple, TypeVar

import jax
from jaxtyping import Array, PyTree

from experiments.config.loop import LoopConfig
from experiments.config.overrides import UsageError
from experiments.training.metrics_log import Row
from experiments.training.steps import Batches, Place, Steps, Task

__all__ = ["Batches", "Place", "Taken", "Task", "drain", "take_steps", "train"]

T = TypeVar("T")


def train(task: Task, state: T, settings: LoopConfig, place: Place) -> Generator[Row, None, T]:
    """Goes to the newest checkpoint, and returns what trains from there to the last step.

    Args:
      task: what is trained.
      state: the start, if there is no checkpoint. On a mesh, every leaf has to be on it; a restored state is placed as
        this one is, which is let go first.
      settings: how the loop is kept, guarded and observed.
      place: where.

    Returns:
      A generator of the rows of metrics.jsonl, which returns the last state. While it runs it raises Interrupted after
      Ctrl-C or a notice of preemption, with everything saved, and NonFiniteError after too many non-finite updates in
      a row, when there is no way back.

    Raises:
      UsageError: the checkpoint belongs to another run, best_metric is unknown, or TensorBoard is missing.
    """
    check_best_metric(settings, task.values, evaluated=task.evaluate is not None)
    loop = Steps(task, state, settings, place)
    del state
    loop.resume()
    return _rows(loop)


def check_best_metric(settings: LoopConfig, values: tuple[str, ...], *, evaluated: bool = False) -> None:
    """Checks that the metric which says which checkpoints are kept is among those of a step.

    Raises:
      UsageError: it is not, and no evaluation measures others.
    """
    if settings.keep_best and not evaluated and settings.best_metric not in values:
        raise UsageError(f"best_metric: {settings.best_metric} is not among {', '.join(values)}")


def _rows(loop: Steps) -> Generator[Row, None, PyTree]:
    task, settings, interrupt = loop.task, loop.settings, loop.place.interrupt
    started = loop.index
    last = loop.ended()
    with ExitStack() as stack:
        loop.open(stack)
        while not last:
            loop.advance()
            last = loop.index == task.steps
            log, due = (last or loop.index % every == 0 for every in (settings.log_every, settings.checkpoint_every))
            if log or due:
                loop.examine()
                if loop.rolled_back():
                    last = False
                    continue
            if log:
                yield loop.log()
                last = loop.ended()
            interrupt.place = f"step {loop.index} of {task.name}"
            stop = interrupt.agreed(exchange=log or due)
            if stop or last or (due and not loop.bad):
                loop.save()
            if stop:
                if task.leave and not last:
                    task.leave(loop.state, loop.index)
                interrupt.check()
    loop.ledger.write()
    if loop.first and loop.index > started:
        print(f"{task.name}: {loop.ledger.line()}", file=sys.stderr)
    return loop.state


def drain(rows: Generator[object, None, T]) -> T:
    """Runs `train` to its end and returns the last state."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


class Taken(NamedTuple, Generic[T]):
    """A step in memory."""

    index: int
    """Its number, from 1."""
    state: T
    """After it; the next step may donate it."""
    batch: PyTree
    metrics: Mapping[str, Array]
    seconds: float


def take_steps(
    step: Callable[[T, PyTree], tuple[T, Mapping[str, Array]]],
    state: T,
    batches: Iterable[PyTree],
    check: Callable[[Mapping[str, Array], int], object],
    prepare: Callable[[int, T, PyTree], T] | None = None,
) -> Iterator[Taken[T]]:
    """Takes one step a batch in memory, and yields each.

    Args:
      step: (state, batch on the device) -> (state, metrics); the state may be donated.
      state: the start.
      batches: host batches, as many as steps are taken.
      check: (metrics, number of the step); raises where training has to end. It waits for the device.
      prepare: (steps taken, state, batch on the device) -> state, before each step and outside of its timing.

    Yields:
      Each step, timed until it is checked.
    """
    for index, host in enumerate(batches, 1):
        batch = jax.device_put(host)
        if prepare:
            state = prepare(index - 1, state, batch)
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        check(metrics, index)
        yield Taken(index, state, batch, metrics, time.perf_counter() - begin)
