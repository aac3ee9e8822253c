"""The settings of learning curves: methods, budgets, benchmarks and seeds, with the controls of each."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.config.methods import MethodConfig
from experiments.config.overrides import UsageError, option
from experiments.config.schema import (
    POCKET,
    STANDARD,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    SystemConfig,
    TuneConfig,
    plain_name,
)

MODEL, DATA, TUNE, EVALUATE, SYSTEM = ModelConfig(), DataConfig(), TuneConfig(), EvaluateConfig(), SystemConfig()


@dataclasses.dataclass(frozen=True)
class CurveRow:
    """One line of the picture: what is trained, and on what."""

    method: MethodConfig = STANDARD
    data: Literal["gold", "shuffled", "solved"] = "gold"
    """The benchmark's own solutions; these under other questions (a control); or the model's own verified ones."""
    records: int | None = None
    """Training records at most."""
    seconds_of: str | None = None
    """Take as many steps as cost the seconds that the budget costs this row; none: the budget's steps."""
    rates_of: str | None = None
    """Take the learning rates of this row; none: search its own."""
    tasks: tuple[str, ...] = ()
    """Benchmarks that it is tuned on; none: all."""
    budgets: tuple[int, ...] = ()
    """Budgets that it is measured at; none: all."""


@dataclasses.dataclass(frozen=True)
class SolvedConfig:
    """How the model's own solutions are sampled for rows of the kind `solved`; `rwkv7 data solve` does the same."""

    wanted: int = option(48, "verified solutions of each benchmark")
    samples: int = option(8, "samples of each problem at most")
    shots: int = option(0, "solved examples before each problem while it is sampled")
    temperature: float = option(1.0, "of sampling")
    problems: int = option(400, "training problems at most")
    row: str | None = option(None, "row whose state samples, tuned on the benchmark; none: the zero state")
    budget: int = option(25, "steps of that state")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which cells are computed now; the report shows all that are there."""

    rows: tuple[str, ...] = option((), "rows to compute now, by commas; none: all")
    tasks: tuple[str, ...] = option((), "benchmarks to compute now; none: all")
    budgets: tuple[int, ...] = option((), "budgets to compute now; none: all")
    seeds: tuple[int, ...] = option((), "seeds to compute now; none: all")


@dataclasses.dataclass(frozen=True)
class CurvesConfig:
    """Learning curves. Cells are kept one by one; other seeds, rows, budgets or benchmarks only add cells."""

    name: str = option("curves", "name of the study")
    seed: int = option(0, "seed of splits and of held-out records")
    output: str | None = option(None, "folder of everything written; none: runs/NAME")
    resume: Literal["auto", "no"] = option("auto", "auto: go on with what the output folder holds")
    overwrite: bool = option(False, "throw away what the output folder holds of an earlier study")
    model: ModelConfig = MODEL
    data: DataConfig = DATA
    tune: TuneConfig = TUNE
    evaluate: EvaluateConfig = EVALUATE
    system: SystemConfig = SYSTEM
    tasks: tuple[str, ...] = option((), "benchmarks, as pocket:mmlu or pocket:mmlu+took with the phrasing of a chain")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds; each draws the order of examples, random starts and supports")
    budgets: tuple[int, ...] = option((25, 100, 400, 1600), "steps")
    rows: dict[str, CurveRow] = dataclasses.field(default_factory=dict, metadata={"help": "rows by name"})
    search_records: int = option(200, "validation records that learning rates are compared on")
    elsewhere: tuple[int, ...] = option((400,), "budgets after which the other benchmarks and plain text are measured")
    elsewhere_tasks: tuple[str, ...] = option((), "benchmarks measured then, of those tuned on another; none: all")
    texts: int = option(64, "documents of plain text whose loss is measured; 0: none")
    text_file: str | None = option(None, "file of plain text, documents by empty lines; none: the pocket world's")
    timing_rounds: int = option(4, "pairs of steps of every row that are timed in turn; 0: no timing")
    solved: SolvedConfig = SolvedConfig()
    select: Selection = Selection()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("must be given, each once")
        if list(self.budgets) != sorted(set(self.budgets)) or min(self.budgets, default=0) < 1:
            raise ValueError("must be whole numbers above 0, in order")

    @property
    def folder(self) -> Path:
        """Where the study is written."""
        return Path(self.output or f"runs/{self.name}").expanduser()

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks as cells are called: mmlu, mmlu+took."""
        return tuple(map(plain_name, self.tasks))


def parts(task: str) -> tuple[str, str | None]:
    """Returns (benchmark, phrasing or None) of a name in `tasks`.

    Example:
      >>> parts("pocket:mmlu+took"), parts("arc")
      (('pocket:mmlu', 'took'), ('arc', None))
    """
    name, _, chain = task.partition("+")
    return name, chain or None


def check_curves(config: CurvesConfig) -> CurvesConfig:
    """Returns the config, if its settings fit together.

    Raises:
      UsageError: in one line, naming the setting.
    """
    if not config.tasks or not config.rows or not config.budgets:
        raise UsageError("tasks, rows and budgets: a study needs one of each at least")
    if len(set(config.names)) < len(config.names):
        raise UsageError(f"tasks: {', '.join(config.tasks)}: one of them stands twice")
    if config.data.tasks or config.data.train or config.data.chain:
        raise UsageError("data.tasks, data.train and data.chain: a study of curves has `tasks` of its own")
    for task in config.tasks:
        if not task.startswith(POCKET) and not config.data.dir:
            raise UsageError(f"tasks: {task} is the real benchmark: give --data.dir FOLDER, or use {POCKET}{task}")
    for name, row in config.rows.items():
        for setting, other in (("seconds_of", row.seconds_of), ("rates_of", row.rates_of)):
            if other is not None and (other not in config.rows or other == name):
                raise UsageError(f"rows: {name} has {setting} {other!r}, which names no other row")
        if row.seconds_of and not config.timing_rounds:
            raise UsageError(f"rows: {name} needs timing_rounds above 0")
        if row.rates_of and config.rows[row.rates_of].rates_of:
            raise UsageError(f"rows: {name} takes the rates of {row.rates_of}, which has none of its own")
        _check_known("rows", f"{name} has the benchmark", row.tasks, config.names)
    _check_known("elsewhere_tasks", "no such thing as", config.elsewhere_tasks, config.names)
    if (start := config.solved.row) is not None and (start not in config.rows or config.rows[start].data == "solved"):
        raise UsageError(f"solved.row: {start!r} is not a row that is tuned on the benchmark's own solutions")
    for setting, chosen, known in (
        ("select.rows", config.select.rows, tuple(config.rows)),
        ("select.tasks", config.select.tasks, config.names),
    ):
        _check_known(setting, "no such thing as", chosen, known)
    for setting, numbers, known in (
        ("select.budgets", config.select.budgets, config.budgets),
        ("select.seeds", config.select.seeds, config.seeds),
        ("elsewhere", config.elsewhere, config.budgets),
    ):
        _check_known(setting, "not in the study:", tuple(map(str, numbers)), tuple(map(str, known)))
    return config


def _check_known(setting: str, what: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    if wrong := [one for one in chosen if one not in known]:
        raise UsageError(f"{setting}: {what} {wrong[0]!r} (there are: {', '.join(known)})")
