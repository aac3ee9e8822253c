"""The settings of a run as one frozen tree; `experiments.config.loading` reads it from files and words."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from experiments.config.loop import LoopConfig
from experiments.config.methods import MethodConfig, StandardMethod, default_rate
from experiments.config.overrides import UsageError, option
from experiments.config.pretraining import DimensionsConfig, OptimizationConfig, PackingConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json: TypeAlias = "dict[str, object] | list[object] | str | int | float | bool | None"
STANDARD = StandardMethod()
BENCHMARKS = ("mmlu", "gsm8k", "winogrande", "arc")
POCKET = "pocket:"
"""Begins the names of embedded benchmarks."""
BOOKKEEPING = ("output", "resume", "overwrite", "system", "mesh")
"""Settings that say where and how a run is kept, and change nothing in its results."""
STARTS = ("init", "init_layout")
"""Settings of `tune` that say where it starts from, if not from zero."""
OUTSIDE = (*STARTS, "patience")
"""Settings of `tune` that are no setting of a step."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


R = TypeVar("R", bound="RunConfig")


def plain_name(task: str) -> str:
    """The name of a benchmark's jobs and folders: `mmlu` for `mmlu` and `pocket:mmlu`."""
    return task.removeprefix(POCKET)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which frozen model is tuned, and how it computes."""

    checkpoint: str = option(
        "pocket/student", "pocket/student or pocket/teacher, a path, hf://OWNER/NAME, https://...", download=True
    )
    tokenizer: str = option("auto", "auto (by vocabulary size), world, byte, or a path to a tokenizer.json")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "compute type; auto: float32 on CPU, else bfloat16")
    quantize: Literal["auto", "none", "int8", "int4"] = option(
        "auto", "integers for the frozen matrices; auto: as the file holds them"
    )
    wkv: str | None = option(None, "WKV implementation (scan, chunked, ...); none: chosen by device")
    remat: Literal["none", "dots", "block"] = option(
        "none", "recompute in the backward pass: nothing, all but weight products, whole blocks (least memory)"
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the state is tuned on."""

    tasks: tuple[str, ...] = option(
        (), "pocket:mmlu, pocket:gsm8k, ... (embedded); mmlu, ... with dir; or the kind of records in train"
    )
    dir: str | None = option(None, "folder of the real benchmarks' files, for tasks without pocket:")
    train: str | None = option(
        None,
        'local .jsonl: {"prompt", "completion"}, {"text"}, {"messages"}, {"instruction", "output"}; or of a task',
    )
    validation: str | None = option(None, "held-out .jsonl; none: a part of the training file")
    validation_fraction: float = option(0.1, "part of the training file held out when there is no validation file")
    max_train: int | None = option(None, "use at most this many training records")
    max_length: int = option(512, "longest example in tokens; longer text is split, longer prompts lose their start")
    batch_size: int = option(16, "examples a step")
    learn: Literal["answers", "all"] = option(
        "answers", "of conversations (User: ... Assistant: ...): the answers alone, or all tokens"
    )
    template: Literal["rwkv", "g1", "none"] = option(
        "rwkv", "messages as text: User: ... Assistant: ...; g1: keeping empty lines in answers; none: contents alone"
    )
    chain: str | None = option(
        None, "answers after a chain of thought: a phrasing, mmlu=took,gsm8k=gold, a template, or auto", escapes=True
    )

    def __post_init__(self) -> None:
        _require(0 < self.validation_fraction < 1, "must lie between 0 and 1")
        _require(self.max_length >= 2, "must be at least 2")
        _require(self.batch_size >= 1 and (self.max_train is None or self.max_train >= 1), "must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks as jobs and folders are called."""
        return tuple(map(plain_name, self.tasks))


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """How the state is tuned; the fields of state_tuning.core.train.TuneConfig (which imports JAX)."""

    steps: int = option(200, "optimiser steps")
    learning_rate: float | Literal["auto"] | None = option(
        None, "peak learning rate of Adam; auto: by short runs; none: 1, of baselines their own"
    )
    schedule: Literal["constant", "linear", "cosine"] = option("cosine", "decay of the learning rate after the warm-up")
    warmup: int = option(10, "steps of linear warm-up")
    final_fraction: float = option(0.1, "last learning rate as a part of the peak")
    clip_norm: float = option(1.0, "largest global norm of the gradient; 0: no clipping")
    alpha: float = option(1.0, "the model starts from alpha * S_0 (S0 Tuning, arXiv 2604.01168)")
    l2: float = option(0.0, "weight of the penalty on |S_0|^2")
    tune_shifts: bool = option(False, "tune the token-shift states too")
    accumulate: int = option(1, "micro-batches a step; must divide data.batch_size")
    segment: int = option(0, "tokens a row whose activations are held at a time, for text longer than memory; 0: all")
    exact_segments: int = option(0, "segments from the start that the gradient runs through; 0: all (exact)")
    patience: int = option(0, "held-out losses in a row above the least after which rwkv7 tune stops; 0: never")
    init: str | None = option(None, "state file to start from; none: the zero state")
    init_layout: str | None = option(None, "axis order of a state file that does not say it")

    def __post_init__(self) -> None:
        rate = self.learning_rate if isinstance(self.learning_rate, float | int) else 1.0
        numbers = (rate, self.final_fraction, self.clip_norm, self.alpha, self.l2)
        _require(all(map(math.isfinite, numbers)), "must be finite")
        _require(self.steps >= 1 and self.accumulate >= 1, "must be at least 1")
        _require(rate > 0, "must be above 0")
        least = min(self.warmup, self.l2, self.clip_norm, self.final_fraction, self.segment, self.exact_segments)
        least = min(least, self.patience)
        _require(least >= 0, "must not be negative")
        _require(self.alpha != 0, "must not be 0, at which the state has no effect")
        _require(self.final_fraction <= 1, "must lie between 0 and 1")

    @property
    def is_automatic(self) -> bool:
        """Whether the learning rate is chosen by short runs (`experiments.choosing`)."""
        return self.learning_rate == "auto"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured before and after."""

    split: Literal["validation", "test"] = option(
        "test", "split that is scored; validation of a real benchmark: a part of its training split"
    )
    max_records: int = option(200, "score at most this many held-out records")
    batch_size: int = option(32, "sequences at once")
    max_new_tokens: int = option(96, "longest generated answer in tokens")

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "must be at least 1")
        _require(self.max_records >= 2, "must be at least 2 (an interval needs two records)")
        _require(self.batch_size >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What is drawn and printed at the end."""

    plots: bool = option(True, "draw the loss curve and the state heat-maps as PNG")
    samples: int = option(1, "held-out prompts that are continued without and with the tuned state")
    sample_tokens: int = option(48, "tokens of each continuation")
    prompt: str | None = option(None, "continue this prompt instead of held-out ones (escapes as \\n)", escapes=True)

    def __post_init__(self) -> None:
        _require(self.samples >= 0 and self.sample_tokens >= 1, "must not be negative")


@dataclasses.dataclass(frozen=True)
class SystemConfig(LoopConfig):
    """Speed and safety of the run; nothing here changes a result."""

    validate_every: int = option(50, "steps between held-out losses while tuning; the best state is kept; 0: none")
    validate_records: int = option(64, "held-out records that they are measured on, the first ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.validate_every >= 0, "must not be negative")
        _require(self.validate_records >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are used (`rwkv7_jax.sharding`)."""

    data: int = option(-1, "devices over which the rows of a batch are cut; -1: those that are left")
    fsdp: int = option(1, "the same, and the weights are cut over them too")
    tensor: int = option(1, "devices over which heads, channels and vocabulary are cut")
    sequence: int = option(1, "devices over which the tokens of each row are cut, for rows longer than one holds")
    coordinator: str | None = option(None, "host:port of the first process; none: found by itself on a TPU pod")
    processes: int | None = option(None, "number of processes, with coordinator")
    process_id: int | None = option(None, "number of this process, with coordinator")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One experiment: vanilla against a tuned state."""

    name: str = option("run", "name of the experiment")
    seed: int = option(0, "seed of shuffling, splits, sampling and bootstrap")
    output: str | None = option(None, "folder of everything written; none: runs/NAME")
    resume: Literal["auto", "no"] = option("auto", "auto: continue from the newest checkpoint in the output folder")
    overwrite: bool = option(False, "throw away what the output folder holds of an earlier run")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tune: TuneConfig = TuneConfig()
    method: MethodConfig = STANDARD
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    system: SystemConfig = SystemConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "must be a whole number from 0 to 2147483647")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output or f"runs/{self.name}").expanduser()

    @property
    def default_rate(self) -> float:
        """The learning rate where none is given."""
        return default_rate(self.method)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(DimensionsConfig, PackingConfig, OptimizationConfig, LoopConfig):
    """Training from scratch on the pocket world's text (`experiments.training.pretraining`)."""

    name: str = option("pretrain", "name of the model")
    seed: int = option(0, "seed of weights and text")
    output: str | None = option(None, "folder of everything written; none: runs/NAME")
    mesh: MeshConfig = MeshConfig()
    save_dtype: Literal["float32", "bfloat16"] = option("bfloat16", "dtype of the weights file")
    validate_every: int = option(100, "steps between validation losses")
    log_every: int = option(10, "steps between rows of metrics.jsonl")
    checkpoint_every: int = option(250, "steps between checkpoints for resuming")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.steps, self.batch_size, self.length, self.validate_every, self.streams, self.accumulate)
        _require(min(counts) >= 1, "must be at least 1")
        for name in ("streams", "accumulate"):
            count = getattr(self, name)
            _require(self.batch_size % count == 0, f"batch_size is not a multiple of {name} ({count})")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output or f"runs/{self.name}").expanduser()


def check_tasks(data: DataConfig) -> DataConfig:
    """The same settings, if every task has its records somewhere.

    Raises:
      UsageError: naming the task that does not.
    """
    for task in data.tasks:
        if task in BENCHMARKS and not (data.dir or data.train):
            raise UsageError(f"data.tasks: {task} is the real benchmark: give --data.dir FOLDER, or use {POCKET}{task}")
        if data.train and task.startswith(POCKET):
            raise UsageError(f"data.tasks: with data.train write {plain_name(task)}, the kind of records, not {task}")
    if len(set(data.names)) < len(data.names):
        raise UsageError(f"data.tasks: {', '.join(data.tasks)}: one folder for two of them; run them one by one")
    return data


def check(config: R) -> R:
    """The same config, if its settings fit together, with the learning rate of its method where none is given.

    Raises:
      UsageError: naming the settings that do not.
    """
    data, tasks = config.data, ", ".join(config.data.tasks)
    if not tasks and not data.train:
        raise UsageError("nothing to tune on: give --data.train my.jsonl, or --data.tasks pocket:mmlu,pocket:gsm8k")
    if data.dir and data.train:
        raise UsageError(
            "data.dir and data.train are two sources: give one of them (--data.dir none leaves the folder out)"
        )
    if len(data.tasks) > 1 and data.train:
        raise UsageError(
            f"data.train goes with one task at most, not {tasks}: add --data.tasks gsm8k or use --config jsonl"
        )
    if data.validation and not data.train:
        raise UsageError("data.validation needs data.train")
    if data.chain and not data.tasks:
        raise UsageError("data.chain goes with benchmarks: add --data.tasks mmlu, or leave it out")
    check_tasks(data)
    if data.batch_size % config.tune.accumulate:
        sizes = f"data.batch_size ({data.batch_size}) is not a multiple of tune.accumulate ({config.tune.accumulate})"
        raise UsageError(f"{sizes}; change one of them")
    if config.tune.patience and not config.system.validate_every:
        raise UsageError("tune.patience needs held-out losses: give --system.validate_every STEPS above 0")
    if config.tune.init_layout and not config.tune.init:
        raise UsageError("tune.init_layout needs tune.init")
    if config.tune.learning_rate is not None:
        return config
    tune = dataclasses.replace(config.tune, learning_rate=config.default_rate)
    return dataclasses.replace(config, tune=tune)


def resolved(config: "DataclassInstance", *, without: Sequence[str] = ()) -> dict[str, Json]:
    """The config as a plain dict for JSON, top-level fields in `without` left out."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in plain.items() if key not in without}


def identified(config: "DataclassInstance", *, without: Sequence[str] = BOOKKEEPING) -> dict[str, Json]:
    """What identifies the results of a run: `resolved` without bookkeeping, embedded benchmarks by their plain names.

    Their plain names keep the identity of runs that were begun when a task without data.dir was the embedded one, and
    so does leaving out what says the same as not to say it: a start that is the zero state, no patience, defaults of
    data.learn, data.template, data.chain and model.quantize. With patience, held-out losses decide about the last step.
    """
    plain = resolved(config, without=without)
    data, tune = plain.get("data"), plain.get("tune")
    if isinstance(tune, dict):
        for name in STARTS:
            if tune.get(name) is None:
                tune.pop(name, None)
        if not tune.get("patience"):
            tune.pop("patience", None)
        elif isinstance(system := resolved(config).get("system"), dict):
            plain["held_out"] = {name: system[name] for name in ("validate_every", "validate_records")}
    for name in ("learn", "template", "chain"):
        if isinstance(data, dict) and data.get(name) == getattr(DataConfig, name):
            data.pop(name)
    for model in plain.values():
        if isinstance(model, dict) and model.get("quantize") == ModelConfig.quantize:
            model.pop("quantize")
    if isinstance(data, dict) and not data.get("dir"):
        for section in (data, plain.get("scaling")):
            if isinstance(section, dict) and isinstance(tasks := section.get("tasks"), list):
                section["tasks"] = [plain_name(str(task)) for task in tasks]
    return plain


def digest(value: object) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def config_hash(config: "DataclassInstance") -> str:
    """SHA-256 of all settings that can change a result."""
    return digest(identified(config))
