"""The settings of `rwkv7 observe`, a tree for each verb, and of a draft."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from experiments.config.loop import LoopConfig
from experiments.config.overrides import option
from experiments.config.schema import DataConfig, ModelConfig

OBSERVED, DATA = ModelConfig(checkpoint="pocket/teacher", dtype="float32"), DataConfig()


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """A smaller model that proposes tokens (speculative decoding)."""

    checkpoint: str | None = option(None, "smaller model of the same tokenizer that proposes tokens; none: no draft")
    tokens: int = option(4, "tokens that it proposes for each pass of the model")
    state: str | None = option(None, "state file that it starts from; none: the zero state")


NO_DRAFT = DraftConfig()


@dataclasses.dataclass(frozen=True)
class SmallConfig:
    """The observer's model: a checkpoint, or new weights of these dimensions."""

    checkpoint: str | None = option(None, "weights to start from; none: new ones of the dimensions below")
    n_layer: int = option(4, "layers")
    n_embd: int = option(128, "width")
    head_size: int = option(64, "size of a head")
    dim_ffn: int = option(0, "width of the channel mix; 0: four times n_embd")
    lora: int = option(16, "rank of the decay, in-context-learning-rate and value LoRAs")
    gate_lora: int = option(32, "rank of the gate LoRA")


@dataclasses.dataclass(frozen=True)
class MapsConfig:
    """How the large model's states are read off the small model's."""

    reads: Literal["paired", "all"] = option("all", "layers that each layer is read off: that of its depth, or all")
    bias: bool = option(True, "a constant beside the linear map")
    saturating: bool = option(False, "each head a second time, with entries that saturate")
    samples: int = option(512, "states that the maps are fitted to at the start, at most")
    iterations: int = option(10, "rounds of alternating least squares at the start")


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How the observer learns."""

    steps: int = option(1000, "optimiser steps")
    optimizer: Literal["muon", "adam"] = option("muon", "of the matrices of the small model's blocks")
    muon_rate: float = option(0.01, "peak learning rate of these, by Muon")
    learning_rate: float = option(1e-3, "peak learning rate of its other weights, by Adam")
    map_rate: float = option(3e-3, "peak learning rate of the maps, by Adam")
    final_rate: float = option(0.05, "last learning rates as a part of the peak")
    warmup: int = option(20, "steps of linear warm-up")
    weight_decay: float = option(0.0, "decoupled weight decay of the blocks' matrices")
    every: int = option(16, "tokens between two comparisons of the states, and between two corrections")
    gain: float = option(0.0, "of the corrections while learning (Luenberger); 0: none")
    state: float = option(1.0, "weight of the sum over layers of |P S^ - S|^2 / |S|^2")
    kl: float = option(1.0, "weight of KL(large | small), nats per token")

    def __post_init__(self) -> None:
        if min(self.steps, self.every) < 1 or self.warmup < 0:
            raise ValueError("steps and every must be at least 1, warmup not negative")
        numbers = (self.muon_rate, self.learning_rate, self.map_rate, self.final_rate, self.weight_decay)
        if not all(0 <= x < math.inf for x in (*numbers, self.gain, self.state, self.kl)):
            raise ValueError("rates, weights and gain must be finite and not negative")
        if self.state + self.kl == 0:
            raise ValueError("state and kl must not both be 0")


@dataclasses.dataclass(frozen=True)
class ObserveLoop(LoopConfig):
    """The loop's settings with those of an observer."""

    validate_every: int = option(100, "steps between two measurements on held-out text; 0: at the end alone")
    validate_records: int = option(64, "held-out records that they are measured on")
    log_every: int = option(10, "steps between rows of metrics.jsonl")
    checkpoint_every: int = option(100, "steps between checkpoints for resuming")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validate_every < 0 or self.validate_records < 2:
            raise ValueError("validate_every must not be negative, validate_records at least 2")


@dataclasses.dataclass(frozen=True)
class Observe:
    """`rwkv7 observe train`."""

    model: ModelConfig = OBSERVED
    small: SmallConfig = SmallConfig()
    data: DataConfig = DATA
    text: int = option(0, "documents of the pocket world's text that are read beside the records")
    maps: MapsConfig = MapsConfig()
    tune: LearningConfig = LearningConfig()
    seed: int = option(0, "seed of weights, maps and the order of the text")
    output: str = option("runs/observe", "folder of everything written")
    system: ObserveLoop = ObserveLoop()

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output).expanduser()


@dataclasses.dataclass(frozen=True)
class Carry:
    """`rwkv7 observe carry`."""

    state: str = option("", "state file of the one model", positional=True, required=True)
    observer: str = option("", "observer.safetensors, or the folder that holds it", required=True)
    direction: Literal["up", "down"] = option("up", "up: from the small model to the large one; down: back")
    layout: str | None = option(None, "axis order of a state file that does not say it")
    output: str = option("", "state file to write", required=True)


@dataclasses.dataclass(frozen=True)
class WarmConfig:
    """States tuned on the small model as warm starts of the large one."""

    steps: int = option(0, "tuning steps of each start; 0: not measured")
    rates: tuple[float, ...] = option((0.3, 1.0, 3.0), "learning rates that every start is tuned with, by commas")
    every: int = option(10, "steps between two held-out losses")
    records: int = option(64, "held-out records of each task that the losses are measured on")


@dataclasses.dataclass(frozen=True)
class SpeculationConfig:
    """The small model as a draft of the large one."""

    tokens: tuple[int, ...] = option((2, 4, 8), "tokens proposed a pass, by commas; none: not measured")
    prompts: int = option(32, "held-out prompts that are continued, side by side")
    max_new_tokens: int = option(48, "longest continuation")
    temperature: float = option(1.0, "of the sampled continuations, beside the greedy ones")


@dataclasses.dataclass(frozen=True)
class MeasureObserver:
    """`rwkv7 observe measure`."""

    observer: str = option("runs/observe", "folder that rwkv7 observe has written")
    model: ModelConfig = OBSERVED
    small: str | None = option(None, "the small model's checkpoint; none: model.safetensors in the folder")
    data: DataConfig = DATA
    records: int = option(64, "held-out records of each task")
    gain: float = option(0.5, "of the corrections")
    speculation: SpeculationConfig = SpeculationConfig()
    warm: WarmConfig = WarmConfig()
    seed: int = option(0, "seed of splits, sampling and the order of examples")
    json: str | None = option(None, "write the numbers to this file too")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")
