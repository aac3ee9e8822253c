"""Timing of tuning steps."""

import time

import jax

from rwkv7_jax.functional import Params
from state_tuning.core import train
from state_tuning.core.objective import Batch

PAIR = 2
"""Steps timed together: DBP measures the correlations at every second one."""


def take_pair(
    step: train.TrainStep, params: Params, tuned: train.TuneState, batch: Batch
) -> tuple[train.TuneState, float]:
    """Returns (tuned, seconds per step) after PAIR steps on one batch."""
    begin = time.perf_counter()
    metrics: train.Metrics = {}
    for _ in range(PAIR):
        tuned, metrics = step(params, tuned, batch)
    jax.block_until_ready(metrics)
    return tuned, (time.perf_counter() - begin) / PAIR
