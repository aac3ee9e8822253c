"""What all cells share: models, jobs, jitted functions that are made when first needed, and tuned states as files."""

import contextlib
import dataclasses
import io
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from experiments import build, methods
from experiments.config.methods import UpscaleMethod
from experiments.config.schema import DataConfig, EvaluateConfig, ModelConfig, TuneConfig, digest
from experiments.config.study import Learned
from experiments.data.batching import encode_pairs
from experiments.data.jobs import Job, load_jobs
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.study.adjustable_rate import with_adjustable_rate
from experiments.study.plan import Plan
from experiments.training.preemption import Interrupt
from rwkv7_jax import State
from rwkv7_jax.checkpoint.states import load_state
from rwkv7_jax.language_model import LanguageModel
from state_tuning.core import train
from state_tuning.core.objective import Example


class Program(NamedTuple):
    """How a method is tuned; the jitted step is shared by all seeds and benchmarks where it can be."""

    chosen: methods.Chosen
    optimizer: optax.GradientTransformationExtraArgs
    step: train.TrainStep
    stability: str
    """One line or more about an upscaled recurrence, or ''."""


CROWDED = 30_000
"""Memory mappings of the process from which on compiled programs are dropped. Each program on the CPU has hundreds, and
Linux allows 65530 (vm.max_map_count)."""


@dataclasses.dataclass
class Resources:
    """Made once a run."""

    model: ModelConfig
    """The model that the table is about."""
    larger_model: str | None
    """Checkpoint of the larger model."""
    data: DataConfig
    evaluate: EvaluateConfig
    tune: TuneConfig
    methods: dict[str, Learned]
    """The tuned methods by name."""
    first_seed: int
    jobs: dict[str, Job]
    states_folder: Path
    interrupt: Interrupt
    _steps: dict[str, train.TrainStep] = dataclasses.field(default_factory=dict)
    _examples: dict[str, list[Example]] = dataclasses.field(default_factory=dict)

    @cached_property
    def student(self) -> Evaluator:
        """The model that the table is about."""
        return self._evaluator(self.model)

    @cached_property
    def larger(self) -> Evaluator:
        """The larger model."""
        return self._evaluator(dataclasses.replace(self.model, checkpoint=str(self.larger_model)))

    def _evaluator(self, model: ModelConfig) -> Evaluator:
        lm, limits = build.load_model(model), self.evaluate
        return Evaluator(lm, make_scorer(lm.model), limits.batch_size, limits.max_new_tokens)

    @property
    def identity(self) -> list[object]:
        """The weights and the data."""
        return [self.student.lm.identity, [job.fingerprint for job in self.jobs.values()]]

    def make_room(self) -> None:
        """Drops compiled programs if there are very many; what is needed again comes from the cache on disk."""
        maps = Path("/proc/self/maps")
        if maps.is_file() and maps.read_bytes().count(b"\n") > CROWDED:
            self._steps.clear()
            jax.clear_caches()

    def evaluator(self, method: str) -> Evaluator:
        """Returns the model of a tuned method."""
        return self.larger if self.methods[method].model == "larger" else self.student

    def examples(self, task: str) -> list[Example]:
        """Returns the training examples of a benchmark; both models read with one tokenizer."""
        if task not in self._examples:
            self._examples[task] = encode_pairs(self.student.lm.tokenizer, self.jobs[task].train, self.data)
        return self._examples[task]

    def program(self, method: str, seed: int) -> Program:
        """Returns how a method is tuned. A feature map belongs to its seed and is compiled into the step; other starts
        are not."""
        lm, settings = self.evaluator(method).lm, self.methods[method].method
        constant = dataclasses.replace(self.tune, learning_rate=1.0, schedule="constant", warmup=0)
        tune, jobs = build.tune_config(constant), list(self.jobs.values())
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            calibration = lambda tokens: methods.calibration_batch(lm.tokenizer, jobs, self.data, tokens)  # noqa: E731
            chosen = methods.build(settings, lm.model, lm.params, tune, calibration, seed)
        optimizer = with_adjustable_rate(chosen.optimizer)
        own_seed = seed if isinstance(settings, UpscaleMethod) else None
        key = digest([vars(settings), str(chosen.model.config), own_seed])
        if key not in self._steps:
            self._steps[key] = train.make_train_step(chosen.model, optimizer, tune, chosen.method, chosen.correlate)
        return Program(chosen, optimizer, self._steps[key], printed.getvalue().strip())

    def state_file(self, method: str, task: str, seed: int) -> Path:
        """Returns where the tuned state of a cell is kept."""
        return self.states_folder / f"{method}-{task}-{seed}.safetensors"

    def save_state(
        self, cell: tuple[str, str, int], lm: LanguageModel, state: State, metrics: dict[str, float]
    ) -> None:
        """Writes a tuned state with where it comes from."""
        path = self.state_file(*cell)
        path.parent.mkdir(exist_ok=True)
        name, task, seed = cell
        method = self.methods[name].method
        settings = {"row": name, "method": vars(method), "seed": seed}
        lm.tuned_state(state, method.kind, task=task, config=settings, metrics=metrics).save(path)

    def load_state(self, method: str, task: str, seed: int) -> State:
        """Reads a state that an earlier cell has tuned."""
        lm = self.evaluator(method).lm
        path = self.state_file(method, task, seed)
        return load_state(path, config=lm.model.config, base_model_hash=lm.weights_hash).state


def load_resources(plan: Plan, interrupt: Interrupt) -> Resources:
    """Reads the data of a table.

    Raises:
      UsageError: whatever is wrong with the files, in one line.
    """
    config = plan.config
    jobs = {job.name: job for job in load_jobs(config.data, config.evaluate, config.seed)}
    return Resources(
        config.model, config.larger, config.data, config.evaluate, config.tune, config.rows, config.seeds[0], jobs,
        config.folder / "states", interrupt,
    )  # fmt: skip
