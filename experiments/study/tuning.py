"""One tuned cell: the training loop, what it costs, and what the tuned state scores on held-out records."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments import build
from experiments.config.schema import TuneConfig
from experiments.data import batching
from experiments.data.jobs import Job
from experiments.evaluation.evaluator import Evaluator
from experiments.study.adjustable_rate import set_rate
from experiments.study.records import ItemScores
from experiments.study.resources import Program, Resources
from experiments.training import loop
from rwkv7_jax import State
from state_tuning.core import non_finite, train
from state_tuning.core.objective import Batch, Example

BeforeStep = Callable[[int, train.TuneState, Batch], None]
"""(steps taken, tuned, batch): called before each step, outside of its timing."""
DIGITS = 6


class Tuned(NamedTuple):
    """A finished loop."""

    tuned: train.TuneState
    losses: list[float]
    """Of each step's batch before its update, nats per completion token."""
    seconds: float
    """Per step, without compilation: the median of the steps of each batch shape, weighted by their number."""


def tune(
    resources: Resources,
    method: str,
    program: Program,
    task: str,
    seed: int,
    rate: float,
    steps: int,
    before_step: BeforeStep | None = None,
    examples: Sequence[Example] | None = None,
) -> Tuned:
    """Takes `steps` steps on a benchmark's training records, in the order of `seed`.

    Args:
      resources: models and data.
      method: the name of the tuned method.
      program: how it is tuned.
      task: the benchmark.
      seed: of the order of records.
      rate: peak learning rate.
      steps: number of steps.
      before_step: called before each step.
      examples: what it is tuned on; None: the benchmark's training records.

    Returns:
      What was tuned, with its losses and seconds.

    Raises:
      NonFiniteError: updates are not finite.
      Interrupted: a signal came.
    """
    params = resources.evaluator(method).lm.params
    tuned = train.init(program.optimizer, program.chosen.method.init())
    rates = schedule(resources.tune, rate, steps)
    examples = resources.examples(task) if examples is None else examples
    batches = batching.training_batches(examples, resources.data.batch_size, seed)
    losses, seconds = [], []

    def prepare(taken: int, tuned: train.TuneState, batch: Batch) -> train.TuneState:
        if before_step:
            before_step(taken, tuned, batch)
        return tuned._replace(opt_state=set_rate(tuned.opt_state, rates[taken]))

    step, drawn = partial(program.step, params), itertools.islice(batches, steps)
    for taken in loop.take_steps(step, tuned, drawn, non_finite.check_finite, prepare):
        tuned = taken.state
        seconds.append((taken.batch["tokens"].shape, taken.seconds))
        losses.append(round(float(taken.metrics["loss"]), DIGITS))
        resources.interrupt.check()
    return Tuned(tuned, losses, typical_seconds(seconds))


def schedule(config: TuneConfig, rate: float, steps: int) -> list[float]:
    """Returns the learning rate of each step."""
    settings = build.tune_config(dataclasses.replace(config, learning_rate=rate, steps=steps))
    at = train.make_schedule(settings)
    return [float(at(index)) for index in range(steps)]


def typical_seconds(seconds: Sequence[tuple[Hashable, float]]) -> float:
    """Returns seconds per step from (shape, seconds) of each: the median of each shape, weighted by its steps."""
    by_shape: dict[Hashable, list[float]] = {}
    for shape, value in seconds:
        by_shape.setdefault(shape, []).append(value)
    return sum(len(values) * statistics.median(values) for values in by_shape.values()) / len(seconds)


def tuned_model(evaluator: Evaluator, program: Program, tuned: train.TuneState) -> tuple[Evaluator, State]:
    """Returns the model and the unbatched state that a tuned tree stands for; only LoRA changes weights."""
    params, state = program.chosen.finish(evaluator.lm.params, tuned.trainable)
    return evaluator._replace(lm=evaluator.lm.replace(params=params)), state


def held_out_loss(
    resources: Resources, evaluator: Evaluator, state: State, job: Job
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns (summed completion NLL in nats, completion tokens) of each held-out record."""
    return evaluator.losses(state, batching.encode_pairs(evaluator.lm.tokenizer, job.held_out, resources.data))


def measure(resources: Resources, evaluator: Evaluator, state: State, task: str) -> ItemScores:
    """Returns what the table needs of a state: a value for each held-out record."""
    job = resources.jobs[task]
    assert job.task is not None
    nll, tokens = held_out_loss(resources, evaluator, state, job)
    right = evaluator.scores(state, job.task, job.records)[job.task.headline]
    return {"nll": np.round(nll, DIGITS).tolist(), "tokens": tokens.astype(int).tolist(), "right": right}
