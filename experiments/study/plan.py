"""Which cells a table has, in order."""

from collections.abc import Sequence

from experiments.config.methods import DBPMethod, StandardMethod, UpscaleMethod
from experiments.config.schema import resolved
from experiments.config.study import Learned, TableRunConfig, shared_identity
from experiments.study.store import Cell

ALL = "all"
"""In a cell's name: it is about all methods or benchmarks."""
RECORDED = ("standard", "dbp", "whitened")
"""Methods whose cells depend on how often the condition number is recorded."""


class Plan:
    """The cells of a config. Their settings hold all that their results depend on, other cells included."""

    def __init__(self, config: TableRunConfig):
        self.config, self.shared = config, shared_identity(config)
        self.plain = resolved(config)
        self.tasks = list(config.data.names)

    def cells(self) -> list[Cell]:
        """Returns all cells in the order in which they are computed: what others need comes first."""
        config, larger = self.config, self.config.larger is not None
        found = [self.measured("vanilla", task) for task in self.tasks]
        found += [self.measured("few_shot", t, s) for s in config.seeds for t in self.tasks if config.shots]
        found += [self.timing()] if config.timing_rounds else []
        own = [name for name, learned in config.rows.items() if learned.seconds_of is None]
        later = [name for name, learned in config.rows.items() if learned.seconds_of is not None]
        for names in (own, later):
            found += [self.tuned(name, t, s) for name in names for s in config.seeds for t in self.tasks]
        if "standard" in config.rows:
            found += [self.measured("soup", task) for task in self.tasks]
            found += [self.measured("soup_tasks", t, s) for s in config.seeds for t in self.tasks]
            found += [self.queries(task) for task in self.tasks]
        if any(type(learned.method) is UpscaleMethod for learned in config.rows.values()):
            found += [Cell("spectra", ALL, ALL, config.seeds[0], [self.shared, self.plain["rows"]])]
        if larger and config.observer.rows and "larger_standard" in config.rows:
            found += [self.measured("larger_vanilla", task) for task in self.tasks]
            found += [Cell("observer", ALL, ALL, config.seed, self._observer)]
            for name in ("observer", "larger_observer"):
                found += [self.measured(name, t, s) for s in config.seeds for t in self.tasks]
        if larger and config.scaling.names:
            found += [self.scaled(t, s) for s in config.seeds for t in config.scaling.names]
        return found

    def tuned(self, method: str, task: str, seed: int) -> Cell:
        """Returns the cell of a state that is tuned and measured."""
        config, learned = self.config, self.config.rows[method]
        wanted: list[object] = [self.shared, self._section("tune", "learning_rate")]
        wanted += [self._method(method), learned.rates.get(task)]
        wanted += [config.larger] if learned.model == "larger" else []
        wanted += [self.timing().key, learned.seconds_of] if learned.seconds_of else []
        wanted += [config.watch_every] if method in RECORDED else []
        return Cell("tuned", method, task, seed, wanted)

    def measured(self, method: str, task: str, seed: int | None = None) -> Cell:
        """Returns the cell of a state that follows from others, or from nothing, and is measured."""
        config, seeds = self.config, self.config.seeds
        seed = seeds[0] if seed is None else seed
        wanted: list[object] = [self.shared]
        if method == "few_shot":
            wanted.append(config.shots)
        if method == "soup":
            wanted += [self.tuned("standard", task, s).key for s in seeds]
        if method == "soup_tasks":
            wanted += [self.tuned("standard", t, seed).key for t in self.tasks]
        if method.startswith("larger"):
            wanted.append(config.larger)
        if method == "observer":
            wanted += [self._observer, self.tuned("larger_standard", task, seed).key]
        if method == "larger_observer":
            wanted += [self._observer, self.tuned("standard", task, seed).key]
        return Cell("measured", method, task, seed, wanted)

    def timing(self) -> Cell:
        """Returns the cell of the seconds per step of every method."""
        timed = [self._method(name) for name in timed_methods(self.config.rows)]
        settings = [self.shared, self.plain["tune"], timed, self.config.timing_rounds]
        return Cell("timing", ALL, ALL, self.config.seeds[0], settings)

    def queries(self, task: str) -> Cell:
        """Returns the cell of |q_t|."""
        seed = self.config.seeds[0]
        tuned = [name for name in ("standard", "upscale") if name in self.config.rows]
        return Cell("queries", ALL, task, seed, [self.tuned(name, task, seed).key for name in tuned])

    def scaled(self, task: str, seed: int) -> Cell:
        """Returns the cell of test-time scaling."""
        starts = ["standard"] + (["larger_standard"] if self.config.scaling.tuned_teacher else [])
        keys = [self.tuned(name, task, seed).key for name in starts]
        settings = [self.shared, self._section("scaling", "tasks"), self.config.larger, keys]
        return Cell("scaled", "test_time", task, seed, settings)

    @property
    def _observer(self) -> list[object]:
        """What the maps depend on."""
        return [self.shared, self.plain["observer"], self.config.larger, self.config.seed]

    def _section(self, name: str, without: str) -> dict[str, object]:
        section = self.plain[name]
        assert isinstance(section, dict)
        return {key: value for key, value in section.items() if key != without}

    def _method(self, name: str) -> object:
        rows = self.plain["rows"]
        assert isinstance(rows, dict)
        learned = rows[name]
        assert isinstance(learned, dict)
        return learned["method"]


def timed_methods(methods: dict[str, Learned]) -> list[str]:
    """Returns the methods on the student that take the table's own number of steps, without those that ask for no
    timing."""
    return [
        name
        for name, learned in methods.items()
        if learned.timed and learned.seconds_of is None and learned.model == "student"
    ]


def records_condition(learned: Learned) -> bool:
    """Returns whether a method trains S_0 alone, by an optimiser that uses C or could."""
    form = learned.method.form if isinstance(learned.method, DBPMethod) else None
    return learned.model == "student" and type(learned.method) in (StandardMethod, DBPMethod) and form != "literal"


def searched_methods(methods: dict[str, Learned]) -> Sequence[str]:
    """Returns the methods that have learning rates of their own."""
    return [name for name, learned in methods.items() if learned.seconds_of is None]
