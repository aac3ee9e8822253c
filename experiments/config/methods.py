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
    name: Literal["state_offset", "prefix", "lora"] = option(
        "state_offset", "an offset at every read, soft tokens read once, or LoRA (which changes weights)"
    )
    prefix: int = option(32, "soft tokens of `prefix`")
    rank: int = option(8, "rank of `lora`")

    def __post_init__(self) -> None:
        if min(self.prefix, self.rank) < 1:
            raise ValueError("must be at least 1")


MethodConfig = StandardMethod | UpscaleMethod | DBPMethod | UpscaleDBPMethod | BaselineMethod

STATE_RATE = 1.0
"""Peak learning rate where a matrix S_0 is tuned. On the validation splits of the pocket benchmarks and of GSM8K with a
real model, the rate that is best or nearly so for all of them (docs/training.md)."""
BASELINE_RATES = {"state_offset": 0.3, "prefix": 0.1, "lora": 0.01}


def default_rate(method: MethodConfig) -> float:
    """The peak learning rate of a method where none is given."""
    return BASELINE_RATES[method.name] if isinstance(method, BaselineMethod) else STATE_RATE
