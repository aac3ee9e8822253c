"""The settings of a results table: a run repeated over methods, benchmarks and seeds."""

import dataclasses
from typing import Literal

from experiments.config.methods import MethodConfig
from experiments.config.overrides import option
from experiments.config.schema import STANDARD, RunConfig, digest, identified, plain_name

LARGER = "larger"
"""Begins the names of rows that are about the larger model."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """One row that is tuned."""

    method: MethodConfig = STANDARD
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Peak learning rate for each benchmark, chosen by `rwkv7 study rates`."""
    seconds_of: str | None = None
    """Take as many steps as cost the seconds that this row costs; none: `tune.steps`."""
    model: Literal["student", "larger"] = "student"
    timed: bool = True
    """Whether its steps are timed beside those of other rows of the student."""


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """Test-time scaling, which starts from the states of the row `standard`."""

    tasks: tuple[str, ...] = option((), "benchmarks; none: no test-time scaling")
    records: int = option(100, "problems of each benchmark, the first ones")
    batch_size: int = option(16, "problems side by side")
    samples: int = option(4, "chains a step")
    steps: int = option(3, "policy-gradient steps")
    rate: float = option(1e-2, "step size")
    kl: float = option(0.05, "weight of the KL to the policy without adaptation")
    reward: Literal["log_probability", "margin"] = option("log_probability", "the larger model's score")
    tuned_teacher: bool = option(True, "the larger model scores from its own tuned state, else from the zero state")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks as cells and folders are called."""
        return tuple(map(plain_name, self.tasks))


@dataclasses.dataclass(frozen=True)
class ObserverConfig:
    """The maps between the states of the two models."""

    rows: int = option(64, "training records of each benchmark that the maps are fitted to; 0: no observer")
    every: int = option(16, "tokens between two looks at the states")
    samples: int = option(512, "states that the maps are fitted to, at most")


@dataclasses.dataclass(frozen=True)
class TableRunConfig(RunConfig):
    """A table: `method`, `report` and `tune.learning_rate` of a run have no meaning here, `rows` takes their place."""

    seeds: tuple[int, ...] = option((0, 1, 2), "seeds; each draws the order of examples, random starts and supports")
    rows: dict[str, Learned] = dataclasses.field(default_factory=dict, metadata={"help": "tuned rows by name"})
    shots: int = option(4, "solved examples of the few-shot row; 0: no such row")
    larger: str | None = option("pocket/teacher", "the larger model; none: no observer and no test-time scaling")
    watch_every: int = option(10, "steps between two looks at the condition number of C~")
    timing_rounds: int = option(6, "pairs of steps of every row that are timed in turn; 0: no timing")
    scaling: ScalingConfig = ScalingConfig()
    observer: ObserverConfig = ObserverConfig()

    @property
    def default_rate(self) -> float:
        """Without a meaning, but a part of the identity of timings; that of tables which were begun before."""
        return 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("must be given, each once")


SHARED = ("name", "model", "data", "evaluate")
"""Settings that every cell depends on."""


def shared_identity(config: TableRunConfig) -> str:
    """SHA-256 of what all cells have in common: more seeds or other rows go on in the same folder."""
    plain = identified(config, without=())
    return digest({name: plain[name] for name in SHARED})
