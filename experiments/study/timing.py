"""What a step of each row costs: rows take steps in turn on the same batches, so that a busy machine hits all alike."""

import statistics
import time
from itertools import islice
from typing import Any

import jax

from experiments.data import batching
from experiments.study.lab import Lab
from state_tuning.core import train

PAIR = 2
"""Steps timed together: DBP looks at the correlations at every second one."""


def timed_rows(config: Any) -> list[str]:
    """Rows of the student that run the table's own number of steps, but for those that want no timing."""
    rows = config.rows.items()
    return [name for name, row in rows if row.timed and row.seconds_of is None and row.model == "student"]


def take_pair(step: train.TrainStep, params: Any, tuned: train.TuneState, batch: Any) -> tuple[train.TuneState, float]:
    """(tuned, seconds per step) after PAIR steps on one batch."""
    begin = time.perf_counter()
    for _ in range(PAIR):
        tuned, metrics = step(params, tuned, batch)
    jax.block_until_ready(metrics)
    return tuned, (time.perf_counter() - begin) / PAIR


def measure(lab: Lab) -> dict[str, dict[str, float]]:
    """row -> benchmark -> median seconds per step."""
    rows, seed = timed_rows(lab.config), lab.config.seeds[0]
    programs = {row: lab.program(row, seed) for row in rows}
    found: dict[str, dict[str, float]] = {row: {} for row in rows}
    for task in lab.jobs:
        batches = batching.training_batches(lab.examples(task), lab.config.data.batch_size, seed)
        batch = jax.device_put(max(islice(batches, 8), key=lambda b: b["tokens"].shape[1]))
        tuned = {row: train.init(p.optimizer, p.chosen.method.init()) for row, p in programs.items()}
        times: dict[str, list[float]] = {row: [] for row in rows}
        for turn in range(lab.config.timing_rounds + 1):
            for row, program in programs.items():
                tuned[row], seconds = take_pair(program.step, lab.student.lm.params, tuned[row], batch)
                times[row] += [seconds] if turn else []
            lab.interrupt.check()
        for row in rows:
            found[row][task] = statistics.median(times[row])
    return found


def steps_for(seconds: dict[str, dict[str, float]], row: str, other: str, steps: int) -> int:
    """How many steps of `row` cost as much as `steps` of `other`, summed over benchmarks, at least 1."""
    return max(1, round(steps * sum(seconds[other].values()) / sum(seconds[row].values())))
