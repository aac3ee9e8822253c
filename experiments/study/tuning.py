"""One tuned cell: the training loop, what it costs, and what the tuned state scores on held-out records."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import build
from experiments.config.schema import TuneConfig
from experiments.data import batching
from experiments.data.jobs import Job
from experiments.study.adjustable_rate import set_rate
from experiments.study.lab import Lab, Program, Side
from rwkv7_jax import State
from state_tuning.core import non_finite, train

Watch = Callable[[int, train.TuneState, Any], None]
"""(steps taken, tuned, batch): looks at the run before each step, outside of its timing."""
DIGITS = 6


class Tuned(NamedTuple):
    """A finished loop."""

    tuned: train.TuneState
    losses: list[float]
    """Of each step's batch before its update, nats per completion token."""
    seconds: float
    """Per step, without compilation: the median of the steps of each batch shape, weighted by their number."""


def tune(
    lab: Lab, side: Side, program: Program, task: str, seed: int, rate: float, steps: int, watch: Watch | None = None
) -> Tuned:
    """`steps` steps on a benchmark's training records, in the order of `seed`.

    Raises: guard.NonFiniteError if updates are not finite, interrupt.Interrupted.
    """
    tuned = train.init(program.optimizer, program.chosen.method.init())
    rates = schedule(lab.config.tune, rate, steps)
    batches = batching.training_batches(lab.examples(task), lab.config.data.batch_size, seed)
    losses, seconds = [], []
    for index in range(1, steps + 1):
        batch = jax.device_put(next(batches))
        if watch:
            watch(index - 1, tuned, batch)
        tuned = tuned._replace(opt_state=set_rate(tuned.opt_state, rates[index - 1]))
        begin = time.perf_counter()
        tuned, metrics = program.step(side.lm.params, tuned, batch)
        non_finite.check_finite(metrics, index)
        seconds.append((batch["tokens"].shape, time.perf_counter() - begin))
        losses.append(round(float(metrics["loss"]), DIGITS))
        lab.interrupt.check()
    return Tuned(tuned, losses, typical(seconds))


def schedule(config: TuneConfig, rate: float, steps: int) -> list[float]:
    """The learning rate of each step."""
    settings = build.tune_config(dataclasses.replace(config, learning_rate=rate, steps=steps))
    at = train.make_schedule(settings)
    return [float(at(index)) for index in range(steps)]


def typical(seconds: Sequence[tuple[Any, float]]) -> float:
    """Seconds per step from (shape, seconds) of each: the median of each shape, weighted by its steps."""
    by_shape: dict[Any, list[float]] = {}
    for shape, value in seconds:
        by_shape.setdefault(shape, []).append(value)
    return sum(len(values) * statistics.median(values) for values in by_shape.values()) / len(seconds)


def finished(side: Side, program: Program, tuned: train.TuneState) -> tuple[Side, State]:
    """The model and the unbatched state that a tuned tree stands for; LoRA's model has other weights."""
    params, state = program.chosen.finish(side.lm.params, tuned.trainable)
    lm = side.lm.replace(params=params)
    return Side(lm, side.evaluator._replace(lm=lm)), state


def held_out_loss(lab: Lab, side: Side, state: State, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """(summed completion NLL in nats, completion tokens) of each held-out record."""
    return side.evaluator.losses(state, batching.encode_pairs(side.lm.tokenizer, job.held_out, lab.config.data))


def measure(lab: Lab, side: Side, state: State, task: str) -> dict[str, Any]:
    """What a row of the table needs: {"nll", "tokens", "right"}, a list over held-out records each."""
    job = lab.jobs[task]
    assert job.task is not None
    nll, tokens = held_out_loss(lab, side, state, job)
    right = side.evaluator.scores(state, job.task, job.records)[job.task.headline]
    return {"nll": np.round(nll, DIGITS).tolist(), "tokens": tokens.astype(int).tolist(), "right": right}
