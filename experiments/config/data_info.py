"""The settings of `rwkv7 data`: one frozen tree for each verb."""

import dataclasses
from typing import Literal

from experiments.config.overrides import option
from experiments.config.schema import DataConfig, TuneConfig

DATA, TUNE = DataConfig(), TuneConfig()


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """Whose tokens are counted."""

    checkpoint: str | None = option(
        None, "a checkpoint, whose step is timed too; none: the released models' tokens", download=True
    )
    tokenizer: str = option("auto", "auto (of the checkpoint, else world), world, byte, or a path to a tokenizer.json")


@dataclasses.dataclass(frozen=True)
class ExamplesConfig:
    """How records become examples; the settings of `rwkv7 tune`."""

    max_length: int = option(DATA.max_length, "longest example in tokens")
    batch_size: int = option(DATA.batch_size, "examples a step")
    learn: Literal["answers", "all"] = option(DATA.learn, "of conversations: the answers alone, or all tokens")
    template: Literal["rwkv", "g1", "none"] = option(DATA.template, "how messages become text")

    def __post_init__(self) -> None:
        if self.max_length < 2 or self.batch_size < 1:
            raise ValueError("must be at least 2 (max_length) and 1 (batch_size)")


@dataclasses.dataclass(frozen=True)
class StepsConfig:
    """What the time is estimated for."""

    steps: int = option(TUNE.steps, "steps whose time is estimated")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("must be at least 1")


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """`rwkv7 data info`."""

    file: str = option("", "file of records, as data.train", positional=True, required=True)
    model: TokensConfig = TokensConfig()
    data: ExamplesConfig = ExamplesConfig()
    tune: StepsConfig = StepsConfig()
    measure: bool = option(True, "time one short step of the checkpoint")
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class DataShow:
    """`rwkv7 data show`."""

    file: str = option("", "file of records, as data.train", positional=True, required=True)
    n: int = option(2, "records that are shown, the first ones")
    data: ExamplesConfig = ExamplesConfig()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError("must be at least 1")
