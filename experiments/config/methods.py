"""The settings of each state-tuning method, as members of one tagged union.

`--method.kind upscale` picks a member; its own settings follow as `--method.size 96`. To add a method, write its
settings here, put them into `MethodConfig`, and give `experiments.methods.build` their meaning.
"""

import dataclasses
from typing import Literal

from experiments.config.overrides import option


@dataclasses.dataclass(frozen=True)
class StandardMethod:
    """S_0 by gradient descent."""

    kind: str = option("standard", "state-tuning method")


@dataclasses.dataclass(frozen=True)
class UpscaleMethod:
    """Kernel upscaling; the fields of state_tuning.upscale.method.Upscale."""

    kind: str = option("upscale", "state-tuning method")
    map: Literal["residual", "recurrent", "literal"] = option("residual", "how the state is lifted")
    size: int = option(0, "lifted key size M, any number above the head size; 0: twice the head size")
    supports: Literal["kmeans", "random"] = option("kmeans", "support vectors: k-means centres or tokens at random")
    bandwidth: float = option(0.35, "width of the Gaussians in units of the median heuristic")
    tokens: int = option(1024, "calibration tokens at most")
    tune_base: bool = option(True, "tune S_0 beside the lifted part")
    allow_unstable: bool = option(False, "go on although the stability criterion is violated")

    def __post_init__(self) -> None:
        if self.size < 0 or self.tokens < 1 or self.bandwidth <= 0:
            raise ValueError("must be positive (size: 0 or more)")


@dataclasses.dataclass(frozen=True)
class DBPMethod:
    """S_0 by decorrelated backpropagation; the arguments of state_tuning.dbp.transform.decorrelated."""

    kind: str = option("dbp", "state-tuning method")
    form: Literal["dbp", "whitened", "literal"] = option(
        "dbp", "learnt R; exact C^(-1/2); or R inside the forward pass"
    )
    rate: float = option(0.1, "step size of R")
    kappa: float = option(0.5, "0 decorrelates, 1 normalises variances, between them R whitens")
    every: int = option(2, "steps between two looks at the correlations")
    sample: float = option(0.1, "part of a batch (whole rows) whose correlations are measured")
    decay: float = option(0.9, "of the running mean of correlations")
    damping: float = option(1e-3, "added to the correlations' mean eigenvalue of 1")

    def __post_init__(self) -> None:
        if not (0 <= self.rate < 1 and 0 <= self.kappa <= 1 and 0 <= self.decay < 1 and 0 < self.sample <= 1):
            raise ValueError("must lie between 0 and 1")
        if self.every < 1 or self.damping < 0:
            raise ValueError("must be at least 1 (damping: 0)")


@dataclasses.dataclass(frozen=True)
class UpscaleDBPMethod(DBPMethod, UpscaleMethod):
    """Both, with the settings of both."""

    kind: str = option("upscale_dbp", "state-tuning method")

    def __post_init__(self) -> None:
        UpscaleMethod.__post_init__(self)
        DBPMethod.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class BaselineMethod:
    """What state tuning is compared with (state_tuning.baselines.methods)."""

    kind: str = option("baseline", "state-tuning method")
    name: Literal["state_offset", "s0_offset", "low_rank_state", "prefix", "lora"] = option(
        "state_offset",
        "an offset at every read, S_0 and an offset, S_0 of a low rank, soft tokens read once, or LoRA (weights)",
    )
    prefix: int = option(32, "soft tokens of `prefix`")
    rank: int = option(8, "rank of `lora` and of `low_rank_state`")

    def __post_init__(self) -> None:
        if min(self.prefix, self.rank) < 1:
            raise ValueError("must be at least 1")


@dataclasses.dataclass(frozen=True)
class RewardMethod:
    """What GRPO and evolution strategies have in common: S_0 learns from rewards of its own samples."""

    kind: str = option("reward", "state-tuning method")
    reward: str = option("", "number, letter, regex:PATTERN, module:function or file.py:function; --reward for short")
    samples: int = option(8, "samples of each prompt in a step, in all data.batch_size times as many")
    temperature: float = option(1.0, "of the samples; of evolution strategies 0 is greedy")
    max_new_tokens: int = option(96, "tokens of a sample at most")
    stop: tuple[str, ...] = option((), "text that ends a sample; may be given several times", repeat=True, escapes=True)
    passes: int = option(8, "samples of each held-out prompt, for pass@k")
    right: float = option(1.0, "reward from which an answer counts as right, for pass@k")

    def __post_init__(self) -> None:
        if min(self.samples, self.passes) < 2 or self.max_new_tokens < 1:
            raise ValueError("must be at least 2 (max_new_tokens: 1)")
        if self.temperature < 0:
            raise ValueError("must not be negative")
        if not all(self.stop):
            raise ValueError("must not be empty")


@dataclasses.dataclass(frozen=True)
class GRPOMethod(RewardMethod):
    """S_0 by group-relative policy optimisation; the fields of state_tuning.reinforcement.grpo.GRPOConfig."""

    kind: str = option("grpo", "state-tuning method")
    updates: int = option(1, "optimiser steps on each batch of samples; with one nothing is clipped")
    clip_low: float = option(0.2, "how far below 1 the ratio of probabilities counts")
    clip_high: float = option(0.28, "how far above 1")
    kl: float = option(0.0, "weight of the KL from the start, nats a token")
    kl_form: Literal["exact", "k3"] = option("exact", "over the whole vocabulary, or estimated at the sampled token")
    normalise: Literal["tokens", "samples"] = option("tokens", "what the loss is a mean over")
    scale: bool = option(False, "divide advantages by the group's standard deviation")

    def __post_init__(self) -> None:
        RewardMethod.__post_init__(self)
        if self.temperature == 0:
            raise ValueError("must be above 0: greedy samples are all alike")
        if self.updates < 1:
            raise ValueError("must be at least 1")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0 or self.kl < 0:
            raise ValueError("must not be negative (clip_low: at most 1)")


@dataclasses.dataclass(frozen=True)
class ESMethod(RewardMethod):
    """S_0 by evolution strategies; the fields of state_tuning.reinforcement.evolution.ESConfig."""

    kind: str = option("es", "state-tuning method")
    sigma: float = option(0.1, "size of the noise, as a part of that of S_0's entries at the start")
    rank: int = option(1, "of the noise in each head; 0: full")

    def __post_init__(self) -> None:
        RewardMethod.__post_init__(self)
        if self.samples % 2:
            raise ValueError("must be even: evolution strategies need pairs")
        if self.sigma <= 0 or self.rank < 0:
            raise ValueError("must be above 0 (rank: not negative)")


MethodConfig = StandardMethod | UpscaleMethod | DBPMethod | UpscaleDBPMethod | BaselineMethod | GRPOMethod | ESMethod

STATE_RATE = 1.0
"""Peak learning rate where a matrix S_0 is tuned. On the validation splits of the pocket benchmarks and of GSM8K with a
real model, the rate that is best or nearly so for all of them (docs/training.md)."""
BASELINE_RATES = {"state_offset": 0.3, "s0_offset": 1.0, "low_rank_state": 0.1, "prefix": 0.1, "lora": 0.01}
REWARD_RATES = {"grpo": 0.6, "es": 0.2}
"""From a state that was tuned on text (docs/methods-reinforcement.md)."""


def default_rate(method: MethodConfig) -> float:
    """The peak learning rate of a method where none is given."""
    if isinstance(method, RewardMethod):
        return REWARD_RATES[method.kind]
    return BASELINE_RATES[method.name] if isinstance(method, BaselineMethod) else STATE_RATE
