"""The settings of `rwkv7 data`: one frozen tree for each verb."""

import dataclasses
import math
from typing import Literal

from experiments.config.overrides import option
from experiments.config.schema import DataConfig, ModelConfig, TuneConfig

DATA, TUNE, MODEL = DataConfig(), TuneConfig(), ModelConfig()


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


@dataclasses.dataclass(frozen=True)
class SolveDataConfig:
    """What is solved."""

    tasks: tuple[str, ...] = option((), "one of pocket:gsm8k, ...; gsm8k, ... with dir; or the kind of records in file")
    dir: str | None = option(None, "folder of the real benchmarks' files, for a task without pocket:")
    file: str | None = option(None, 'jsonl of {"prompt", "completion"}, or public records of the task')
    match: Literal["text", "number"] = option("number", "how answers to a file without a task are checked")
    chain: str | None = option(
        None, "phrasing of a benchmark's answers after a chain of thought, as of rwkv7 tune", escapes=True
    )


@dataclasses.dataclass(frozen=True)
class DataSolve:
    """`rwkv7 data solve`."""

    model: ModelConfig = MODEL
    state: str | None = option(None, "state file that sampling starts from; none: the zero state")
    data: SolveDataConfig = SolveDataConfig()
    output: str = option("solved.jsonl", "file of records to write, for data.train")
    wanted: int = option(48, "solutions, at most one of each problem")
    samples: int = option(8, "samples of each problem at most")
    problems: int = option(400, "training problems at most, the first ones")
    shots: int = option(0, "solved examples before each problem while it is sampled; they are not written")
    temperature: float = option(1.0, "of sampling")
    max_new_tokens: int = option(96, "longest sample in tokens; one that is cut there is not accepted")
    batch_size: int = option(32, "samples side by side")
    seed: int = option(0, "seed of all sampling")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")

    def __post_init__(self) -> None:
        counts = (self.wanted, self.samples, self.problems, self.max_new_tokens, self.batch_size)
        if min(counts) < 1 or self.shots < 0 or not 0 < self.temperature < math.inf:
            raise ValueError("must be at least 1 (shots: 0), and the temperature above 0")
        if not 0 <= self.seed < 2**31:
            raise ValueError("must be a whole number from 0 to 2147483647")
