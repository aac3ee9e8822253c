"""What a tuning step of each method costs, against one of standard state tuning (`rwkv7 bench steps`).

All methods run in one process on the same random weights and the same batch, and take steps in turn, so that a busy
machine hits all alike; the median of the rounds counts. Steps come in pairs, because DBP measures the correlations at
every second one.
"""

import statistics
import sys
from collections.abc import Sequence

import numpy as np

from experiments import methods
from experiments.bench.inputs import tokens
from experiments.bench.weights import random_weights
from experiments.config.methods import (
    BaselineMethod,
    DBPMethod,
    MethodConfig,
    StandardMethod,
    UpscaleDBPMethod,
    UpscaleMethod,
)
from experiments.reporting.tables import markdown_table
from experiments.training.pairs import take_pair
from rwkv7_jax import RWKV7
from rwkv7_jax.functional import Params
from state_tuning.core import train
from state_tuning.core.objective import Batch, Example, collate

METHODS: dict[str, MethodConfig] = {
    "standard": StandardMethod(),
    "upscale, residual": UpscaleMethod(),
    "upscale, recurrent": UpscaleMethod(map="recurrent"),
    "dbp": DBPMethod(),
    "whitened": DBPMethod(form="whitened"),
    "upscale_dbp": UpscaleDBPMethod(),
    "state_offset": BaselineMethod(name="state_offset"),
    "prefix": BaselineMethod(name="prefix"),
    "lora": BaselineMethod(name="lora"),
}


class Runner:
    """One method: its compiled step and the state that it is at."""

    def __init__(self, method: MethodConfig, model: RWKV7, params: Params, batch: Batch):
        tune = train.TuneConfig()
        chosen = methods.build(method, model, params, tune, lambda count: batch, 0)
        self.step = train.make_train_step(chosen.model, chosen.optimizer, tune, chosen.method, chosen.correlate)
        self.params, self.batch = params, batch
        self.state = train.init(chosen.optimizer, chosen.method.init())
        self.pair()

    def pair(self) -> float:
        """Takes two steps; returns the seconds of one."""
        self.state, seconds = take_pair(self.step, self.params, self.state, self.batch)
        return seconds


def chosen_methods(only: Sequence[str] = ()) -> list[str]:
    """Returns the methods to measure: standard and those of `only`, or all."""
    return [name for name in METHODS if name == "standard" or name in (only or METHODS)]


def measure(shape: str, batch_size: int, length: int, rounds: int, names: Sequence[str]) -> dict[str, float]:
    """Measures a step of each method.

    Args:
      shape: one of `SHAPES`.
      batch_size: sequences of the batch.
      length: tokens of a sequence.
      rounds: times that every method is measured in turn.
      names: of `METHODS`.

    Returns:
      method -> median seconds a step.
    """
    config, params = random_weights(shape)
    text = np.asarray(tokens(length + 1, config.vocab_size), np.int32)
    batch = collate([Example(np.roll(text, shift), 1, 0) for shift in range(batch_size)], length)
    runners = {}
    for name in names:
        print(f"compiling {name}", file=sys.stderr, flush=True)
        runners[name] = Runner(METHODS[name], RWKV7(config), params, batch)
        assert runners[name].step._cache_size() == 1, f"{name} was compiled twice"
    times: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(rounds):
        print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, runner in runners.items():
            times[name].append(runner.pair())
    return {name: statistics.median(found) for name, found in times.items()}


def table(seconds: dict[str, float]) -> str:
    """Returns the methods as a Markdown table."""
    base = seconds["standard"]
    lines = [[name, f"{1000 * value:.0f}", f"{value / base:.2f}"] for name, value in seconds.items()]
    return markdown_table([["method", "ms a step", "times standard"], *lines])
