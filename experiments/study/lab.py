"""What all cells share: models, jobs, jitted functions that are made when first needed, and tuned states as files."""

import contextlib
import dataclasses
import io
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import build, methods
from experiments.config.methods import UpscaleMethod
from experiments.config.schema import ModelConfig, digest
from experiments.config.study import TableRunConfig
from experiments.data.batching import encode_pairs
from experiments.data.jobs import Job, load_jobs
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.study.adjustable_rate import rated
from experiments.training.preemption import Interrupt
from rwkv7_jax import State
from rwkv7_jax.checkpoint.states import load_state, save_state
from rwkv7_jax.language_model import LanguageModel
from state_tuning.core import train
from state_tuning.core.objective import Example


class Side(NamedTuple):
    """A frozen model and what measures it."""

    lm: LanguageModel
    evaluator: Evaluator


class Program(NamedTuple):
    """How a row is tuned; the jitted step is shared by all seeds and benchmarks where it can be."""

    chosen: methods.Chosen
    optimizer: Any
    step: train.TrainStep
    stability: str
    """One line or more about an upscaled recurrence, or ''."""


CROWDED = 30_000
"""Memory mappings of the process from which on compiled programs are dropped. Each program on the CPU has hundreds, and
Linux allows 65530 (vm.max_map_count)."""


class Lab:
    """Made once a run."""

    def __init__(self, config: TableRunConfig, interrupt: Interrupt):
        self.config, self.interrupt = config, interrupt
        self.jobs: dict[str, Job] = {job.name: job for job in load_jobs(config)}
        self._steps: dict[str, train.TrainStep] = {}
        self._examples: dict[str, list[Example]] = {}

    @cached_property
    def student(self) -> Side:
        """The model that the table is about."""
        return self._side(self.config.model)

    @cached_property
    def larger(self) -> Side:
        """The larger model."""
        return self._side(dataclasses.replace(self.config.model, checkpoint=str(self.config.larger)))

    def _side(self, model: ModelConfig) -> Side:
        lm, limits = build.build(model), self.config.evaluate
        return Side(lm, Evaluator(lm, make_scorer(lm.model), limits.batch_size, limits.max_new_tokens))

    def make_room(self) -> None:
        """Drop compiled programs if there are very many; what is needed again comes from the cache on disk."""
        maps = Path("/proc/self/maps")
        if maps.is_file() and maps.read_bytes().count(b"\n") > CROWDED:
            self._steps.clear()
            jax.clear_caches()

    def side(self, row: str) -> Side:
        """The model of a tuned row."""
        return self.larger if self.config.rows[row].model == "larger" else self.student

    def examples(self, task: str) -> list[Example]:
        """Training examples; both models read with one tokenizer."""
        if task not in self._examples:
            self._examples[task] = encode_pairs(self.student.lm.tokenizer, self.jobs[task].train, self.config.data)
        return self._examples[task]

    def program(self, row: str, seed: int) -> Program:
        """How to tune `row`. A feature map belongs to its seed and is compiled into the step; other starts are not."""
        lm, method = self.side(row).lm, self.config.rows[row].method
        constant = dataclasses.replace(self.config.tune, learning_rate=1.0, schedule="constant", warmup=0)
        settings, data, jobs = build.tune_config(constant), self.config.data, list(self.jobs.values())
        with contextlib.redirect_stdout(io.StringIO()) as said:
            calibration = lambda tokens: methods.calibration_batch(lm.tokenizer, jobs, data, tokens)  # noqa: E731
            chosen = methods.build(method, lm.model, lm.params, settings, calibration, seed)
        optimizer = rated(chosen.optimizer)
        key = digest([vars(method), str(chosen.model.config), seed if isinstance(method, UpscaleMethod) else None])
        if key not in self._steps:
            self._steps[key] = train.make_train_step(chosen.model, optimizer, settings, chosen.method, chosen.correlate)
        return Program(chosen, optimizer, self._steps[key], said.getvalue().strip())

    def state_file(self, row: str, task: str, seed: int) -> Path:
        """Where the tuned state of a cell is kept."""
        return self.config.folder / "states" / f"{row}-{task}-{seed}.safetensors"

    def save_state(self, cell: tuple[str, str, int], side: Side, state: State, metrics: dict[str, Any]) -> None:
        """Write a tuned state with where it comes from."""
        path = self.state_file(*cell)
        path.parent.mkdir(exist_ok=True)
        method = self.config.rows[cell[0]].method
        settings = {"row": cell[0], "method": vars(method), "seed": cell[2]}
        metadata = {"base_model_hash": side.lm.weights_hash, "method": method.kind, "task": cell[1]}
        save_state(path, state, metadata={**metadata, "config": settings, "metrics": metrics})

    def load_state(self, row: str, task: str, seed: int) -> State:
        """A state that an earlier cell has tuned."""
        lm = self.side(row).lm
        path = self.state_file(row, task, seed)
        return load_state(path, config=lm.model.config, base_model_hash=lm.weights_hash).state
