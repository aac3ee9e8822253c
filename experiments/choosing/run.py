"""Phrasing and learning rate of a run, chosen before it begins; every try is kept in the run's folder."""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiments import build
from experiments.choosing import phrasing, rate
from experiments.choosing.phrasing import Tried
from experiments.config.methods import MethodConfig, UpscaleMethod, default_rate
from experiments.config.overrides import UsageError
from experiments.config.schema import (
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    SystemConfig,
    TuneConfig,
    digest,
    resolved,
)
from experiments.data import batching
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import hold_out
from experiments.evaluation.evaluator import Evaluator
from experiments.session import Tuner, make_evaluator, make_tuner, training_lengths
from experiments.study.adjustable_rate import make_adam_with_peak, set_peak
from experiments.study.learning_rates import loss_or_infinity
from experiments.study.store import Cell, CellStore
from experiments.training import loop
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import TRIES_FILE, held
from rwkv7_jax import State
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from state_tuning.core import non_finite


class Settings(NamedTuple):
    """The sections of a run that choices depend on."""

    model: ModelConfig
    data: DataConfig
    tune: TuneConfig
    method: MethodConfig
    evaluate: EvaluateConfig
    system: SystemConfig
    mesh: MeshConfig
    seed: int


class Short(NamedTuple):
    """The jobs of short runs, and their compiled step."""

    jobs: Sequence[Job]
    tuner: Tuner
    steps: int
    lengths: tuple[int, ...]
    """That batches are padded to."""


def choose(settings: Settings, folder: Path) -> tuple[DataConfig, TuneConfig]:
    """Returns the data and tune sections without `auto`; what is chosen is printed.

    Args:
      settings: of the run.
      folder: of the run, where tries are kept.

    Raises:
      UsageError: in one line: several processes, or records that a choice cannot be made on.
      Interrupted: a signal came; the same command goes on.
    """
    data, tune = settings.data, settings.tune
    wanted = phrasing.wants_choice(data.chain, data.tasks)
    if not wanted and not tune.is_automatic:
        return data, tune
    if hasattr(settings.method, "reward"):
        raise UsageError("tune.learning_rate auto and data.chain auto are for methods that learn from text: name them")
    if settings.mesh.processes not in (None, 1):
        raise UsageError("tune.learning_rate auto and data.chain auto run in one process: find them there first")
    if wanted and data.train:
        raise UsageError("data.chain auto needs the validation split of a benchmark, not data.train: name a phrasing")
    use_compilation_cache(settings.system.compilation_cache)
    with held(folder), Interrupt() as interrupt:
        chooser = Chooser(settings, build.load_model(settings.model), folder, interrupt)
        chain = phrasing.choose(data.chain, data.tasks, chooser.phrasing)
        data = dataclasses.replace(data, chain=chain)
        return data, dataclasses.replace(tune, learning_rate=chooser.rate(data)) if tune.is_automatic else tune


class Chooser:
    """Short runs, each kept when it is done."""

    def __init__(self, settings: Settings, lm: LanguageModel, folder: Path, interrupt: Interrupt):
        self.settings, self.lm, self.interrupt = settings, lm, interrupt
        self.store = CellStore[dict[str, object]](folder / TRIES_FILE)
        self.default = default_rate(settings.method)
        self.evaluator = make_evaluator(lm, settings.evaluate)
        self._tuners: dict[int, Tuner] = {}

    def rate(self, data: DataConfig) -> float:
        """Returns the learning rate whose short runs end with the least held-out loss, mean over the jobs."""
        settings = self.settings
        jobs = short_jobs(data, settings.evaluate, settings.seed)
        short = self._short(data, jobs, rate.short_steps(settings.tune.steps))

        def loss(tried: float) -> float:
            cell = self._cell("rate", short, tried)
            found = self.store.get(cell) or self.store.add(cell, {"rate": tried, "loss": self._loss(short, tried)})
            self.interrupt.check()
            value = found["loss"]
            assert isinstance(value, float | int)
            return float(value)

        choice = rate.choose(loss, self.default)
        records = sum(len(job.held_out) for job in jobs)
        source = "the training file" if is_carved(data, settings.evaluate) else "the validation split"
        print(rate.told(choice, short.steps, settings.tune.steps, records, source), flush=True)
        return choice.rate

    def phrasing(self, task: str, name: str) -> Tried:
        """Returns how often the answers are right after a short run with a phrasing."""
        settings = self.settings
        data = dataclasses.replace(settings.data, tasks=(task,), chain=name)
        (job,) = short_jobs(data, settings.evaluate, settings.seed)
        assert job.task is not None
        value = self.default if settings.tune.is_automatic else float(settings.tune.learning_rate or self.default)
        short = self._short(data, [job], min(settings.tune.steps, rate.LONGEST))
        cell = self._cell("phrasing", short, value)
        found = self.store.get(cell)
        if found is None:
            evaluator, state = self._tuned(short, job, value)
            scores = evaluator.scores(state, job.task, job.records)
            right = {"strict": scores["strict_match"], "flexible": scores["flexible_extract"]}
            found = self.store.add(cell, {"rate": value, **right})
        self.interrupt.check()
        strict, flexible = (_numbers(found[key]) for key in ("strict", "flexible"))
        return Tried(name, sum(strict) / len(strict), sum(flexible) / len(flexible), len(strict))

    def _short(self, data: DataConfig, jobs: Sequence[Job], steps: int) -> Short:
        settings = self.settings
        tune = dataclasses.replace(settings.tune, learning_rate=self.default, steps=steps)
        tuner = self._tuners.get(steps)
        if tuner is None:
            tuner = make_tuner(self.lm, jobs, data, tune, settings.method, settings.seed, make_adam_with_peak)
        if not isinstance(settings.method, UpscaleMethod):
            self._tuners[steps] = tuner  # It compiles once; a feature map belongs to the text that it is fitted to.
        return Short(jobs, tuner, steps, training_lengths(self.lm, jobs, data, steps))

    def _cell(self, kind: str, short: Short, value: float) -> Cell:
        """A try by all that it depends on."""
        parts = [self.settings.method, self.settings.tune, self.settings.model]
        plain = [resolved(part) for part in parts]
        plain[1].pop("learning_rate")
        data = [job.fingerprint for job in short.jobs]
        key = [digest(plain), self.lm.identity, short.tuner.start or "", data, short.steps, value]
        batch = [self.settings.data.batch_size, self.settings.data.max_length, self.settings.evaluate.max_new_tokens]
        names = ",".join(job.name for job in short.jobs)
        return Cell(kind, "auto", names, self.settings.seed, [*key, *batch])

    def _loss(self, short: Short, value: float) -> float:
        """Held-out loss after a short run, mean over the jobs; infinite where tuning diverges."""

        def mean() -> float:
            losses = []
            for job in short.jobs:
                evaluator, state = self._tuned(short, job, value)
                examples = batching.encode_pairs(self.lm.tokenizer, job.held_out, self.settings.data)
                nll, tokens = evaluator.losses(state, examples)
                losses.append(float(nll.sum() / tokens.sum()))
            return sum(losses) / len(losses)

        return loss_or_infinity(mean)

    def _tuned(self, short: Short, job: Job, value: float) -> tuple[Evaluator, State]:
        """The model and the state after a short run at a peak rate."""
        data, seed = self.settings.data, self.settings.seed
        examples = batching.encode_pairs(self.lm.tokenizer, job.train, data)
        batches = batching.training_batches(examples, data.batch_size, seed, lengths=short.lengths)
        drawn = itertools.islice(batches, short.steps)
        tuned = set_peak(short.tuner.fresh(), value)
        for taken in loop.take_steps(partial(short.tuner.step, self.lm.params), tuned, drawn, non_finite.check_finite):
            tuned = taken.state
            self.interrupt.place = f"step {taken.index} of a short run at rate {value:g}"
            self.interrupt.check()
        params, state = short.tuner.chosen.finish(self.lm.params, tuned.trainable)
        return self.evaluator._replace(lm=self.lm.replace(params=params)), state


def is_carved(data: DataConfig, evaluate: EvaluateConfig) -> bool:
    """Returns whether choices are made on a part of the training records, since the run reports all held-out ones."""
    return data.train is not None or evaluate.split == "validation"


def short_jobs(data: DataConfig, evaluate: EvaluateConfig, seed: int) -> list[Job]:
    """Returns jobs whose held-out records are none that the run itself reports.

    Raises:
      UsageError: whatever is wrong with the files, or too few records.
    """
    few = dataclasses.replace(evaluate, max_records=max(2, min(evaluate.max_records, phrasing.RECORDS)))
    if not is_carved(data, evaluate):
        return load_jobs(data, dataclasses.replace(few, split="validation"), seed)
    found = []
    for job in load_jobs(data, evaluate, seed):
        train, held_out = hold_out(job.train, data.validation_fraction, seed)
        found.append(job._replace(train=train, held_out=held_out[: few.max_records], records=()))
    return found


def _numbers(value: object) -> list[float]:
    assert isinstance(value, list)
    return [float(one) for one in value]
