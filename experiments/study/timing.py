"""What a step of each method costs: they take steps in turn on the same batches, so that a busy machine hits all
alike."""

import statistics
from collections.abc import Sequence
from itertools import islice

import jax

from experiments.data import batching
from experiments.study.plan import timed_methods
from experiments.study.resources import Resources
from experiments.training.pairs import take_pair
from state_tuning.core import train


def measure(
    resources: Resources, rounds: int, names: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Returns method -> benchmark -> median seconds per step of `rounds` pairs of steps.

    names, tasks: the methods and benchmarks; None: all that are timed.
    """
    names, seed = timed_methods(resources.methods) if names is None else names, resources.first_seed
    programs = {name: resources.program(name, seed) for name in names}
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for task in resources.jobs if tasks is None else tasks:
        batches = batching.training_batches(resources.examples(task), resources.data.batch_size, seed)
        batch = jax.device_put(max(islice(batches, 8), key=lambda b: b["tokens"].shape[1]))
        tuned = {name: train.init(p.optimizer, p.chosen.method.init()) for name, p in programs.items()}
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name, program in programs.items():
                tuned[name], seconds = take_pair(program.step, resources.student.lm.params, tuned[name], batch)
                times[name] += [seconds] if turn else []
            resources.interrupt.check()
        for name in names:
            found[name][task] = statistics.median(times[name])
    return found


def steps_for(seconds: dict[str, dict[str, float]], method: str, other: str, steps: int) -> int:
    """Returns how many steps of `method` cost as much as `steps` of `other`, summed over benchmarks, at least 1."""
    return max(1, round(steps * sum(seconds[other].values()) / sum(seconds[method].values())))
