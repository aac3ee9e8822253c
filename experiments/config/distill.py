"""The settings of `rwkv7 distill`: a prompt, a larger model or preferences compiled into a state."""

import dataclasses
from typing import Literal

from experiments.config.commands import FLOAT32_MODEL, CacheConfig
from experiments.config.overrides import option
from experiments.config.scale import OptionalTeacherConfig
from experiments.config.schema import ModelConfig

CACHE, NO_TEACHER = CacheConfig(), OptionalTeacherConfig()
RATES = {"prompt": 3e-3, "teacher": 1.0, "preferences": 0.1}
"""Learning rates where none is given, by what is compiled."""
LENGTHS = {"prompt": 64, "teacher": 512, "preferences": 512}
"""Longest texts where no length is given."""
TEXTS = {"prompt": 64, "teacher": 10**9, "preferences": 10**9}
"""Most texts where no number is given."""


@dataclasses.dataclass(frozen=True)
class DistillDataConfig:
    """What the state is fitted on."""

    train: str | None = option(
        None, "jsonl of texts, or of prompts and completions; none: texts that the model writes after the prompt"
    )


@dataclasses.dataclass(frozen=True)
class DistillTuneConfig:
    """How the state is fitted."""

    steps: int = option(100, "optimiser steps of the fit; 0: none")
    learning_rate: float | None = option(
        None, "learning rate of the fit; none: 0.003 of a prompt, 1 of a teacher, 0.1 of preferences"
    )
    divergence: Literal["forward", "reverse", "mixed"] = option("forward", "from a teacher's distributions")
    mixture: float = option(0.5, "the teacher's weight in the mixed divergence")
    hard: float = option(0.0, "share of the texts' own tokens in the loss beside a teacher's distributions")
    beta: float = option(0.1, "of preferences: how far from the start; smaller goes farther")


@dataclasses.dataclass(frozen=True)
class Distill:
    """`rwkv7 distill`."""

    model: ModelConfig = FLOAT32_MODEL
    prompt_file: str = option("", 'file with the prompt (UTF-8); "-" reads standard input; none: no prompt')
    teacher: OptionalTeacherConfig = NO_TEACHER
    preferences: str | None = option(None, 'jsonl of {"prompt", "chosen", "rejected"}; none: no preferences')
    state: str | None = option(None, "of a teacher or preferences: state file to start from; none: the zero state")
    output: str = option("state.safetensors", "state file to write")
    data: DistillDataConfig = DistillDataConfig()
    tune: DistillTuneConfig = DistillTuneConfig()
    texts: int = option(0, "texts to fit on at most; 0: 64 after a prompt, which also gives half as many, else all")
    length: int = option(0, "tokens of each text at most; 0: 64 after a prompt, else 512")
    batch_size: int = option(16, "texts a step")
    rank: int | None = option(None, "keep every matrix at this rank; none: full rank")
    keep_shifts: bool = option(False, "keep the token-shift states (our own format alone)")
    seed: int = option(0, "seed of the texts and their order")
    system: CacheConfig = CACHE

    @property
    def source(self) -> str:
        """What is compiled, a key of `RATES`."""
        return "prompt" if self.prompt_file else "preferences" if self.preferences else "teacher"
