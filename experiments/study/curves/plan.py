"""Which cells a study of curves has."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from experiments.config.curves import CurveRow, CurvesConfig, parts
from experiments.config.schema import Json, digest, identified
from experiments.study.store import Cell

VANILLA = "vanilla"
SHARED = ("model", "data", "evaluate", "seed", "search_records")


class Place(NamedTuple):
    """Where a point of a curve lies."""

    row: str
    task: str
    budget: int


class CurvePlan:
    """The cells of a config. Their settings hold all that their results depend on."""

    def __init__(self, config: CurvesConfig, fingerprints: Mapping[str, str]):
        """fingerprints: of the records of each benchmark."""
        self.config, self.fingerprints = config, fingerprints
        plain = identified(config, without=())
        tune = plain["tune"]
        assert isinstance(tune, dict)
        free = ("steps", "learning_rate")
        steps = {key: value for key, value in tune.items() if key not in free}
        self.shared = digest([{name: plain[name] for name in SHARED}, steps])
        self.solved, self.texts = plain["solved"], [plain["texts"], plain["text_file"]]
        self.rows = plain["rows"]

    def tasks(self, row: str) -> tuple[str, ...]:
        """Returns the benchmarks that a row is tuned on."""
        return self.config.rows[row].tasks or self.config.names

    def budgets(self, row: str) -> tuple[int, ...]:
        """Returns the budgets of a row, in order."""
        return tuple(sorted(self.config.rows[row].budgets)) or self.config.budgets

    def places(self) -> Iterator[Place]:
        """Yields every point, small budgets first, so that a run that is stopped has all methods at some of them."""
        for budget in self.config.budgets:
            for row in self.config.rows:
                for task in self.tasks(row):
                    if budget in self.budgets(row):
                        yield Place(row, task, budget)

    def cells(self) -> list[tuple[Place, Cell]]:
        """Returns all cells with results, in order."""
        found = [(Place(VANILLA, task, 0), self.vanilla(task)) for task in self.config.names]
        return found + [(place, self.tuned(place, seed)) for place in self.places() for seed in self.config.seeds]

    def selected(self) -> list[tuple[Place, Cell]]:
        """Returns the cells to compute now."""
        chosen = self.config.select
        return [
            (place, cell)
            for place, cell in self.cells()
            if (not chosen.tasks or place.task in chosen.tasks)
            and (
                place.row == VANILLA
                or (
                    (not chosen.rows or place.row in chosen.rows)
                    and (not chosen.budgets or place.budget in chosen.budgets)
                    and (not chosen.seeds or cell.seed in chosen.seeds)
                )
            )
        ]

    def vanilla(self, task: str) -> Cell:
        """Returns the cell of the untuned model on a benchmark, and on plain text."""
        return Cell("curve", VANILLA, task, 0, [self.shared, self.fingerprints[task], self.texts])

    def tuned(self, place: Place, seed: int) -> Cell:
        """Returns the cell of a point with one seed."""
        other = [self.texts, self.others(place.task)] if self.is_measured_elsewhere(place) else []
        return Cell("curve", place.row, place.task, seed, [*self._trained(place), place.budget, self._first, other])

    def tried(self, place: Place, rate: float) -> Cell:
        """Returns the cell of one learning rate, on the validation split with the first seed."""
        return Cell("rate", place.row, place.task, self._first, [*self._trained(place), place.budget, rate])

    @property
    def base(self) -> str:
        """The row that others are timed beside: the first."""
        return next(iter(self.config.rows))

    def timing(self, row: str, other: str, task: str) -> Cell:
        """Returns the cell of the seconds a step of two rows, taken in turn."""
        methods = [self._method(row), self._method(other)]
        return Cell("timing", row, task, self._first, [self.shared, methods, self.config.timing_rounds])

    def timed(self) -> list[tuple[str, str]]:
        """Returns (row, benchmark) of the selected rows, which are timed beside the first."""
        rows, tasks = self.config.select.rows or self.config.rows, self.config.select.tasks
        found = [(row, task) for row in dict.fromkeys((self.base, *rows)) for task in self.tasks(row)]
        return [(row, task) for row, task in found if not tasks or task in tasks] if self.config.timing_rounds else []

    def solutions(self, task: str) -> Cell:
        """Returns the cell of the model's own verified solutions."""
        start = self.sampling_place(task)
        state = [] if start is None else [self.tuned(start, self._first).key]
        return Cell("solutions", VANILLA, task, self._first, [self.shared, self.fingerprints[task], self.solved, state])

    def sampling_place(self, task: str) -> Place | None:
        """Returns the point whose state own solutions are sampled from; None: the zero state."""
        solved = self.config.solved
        return None if solved.row is None else Place(solved.row, task, solved.budget)

    def others(self, task: str) -> list[str]:
        """Returns the benchmarks that states tuned on one are measured on besides, none twice in another protocol."""
        mine, known = parts(task)[0], self.config.elsewhere_tasks or self.config.names
        return [other for other in known if parts(other)[0] != mine]

    def is_measured_elsewhere(self, place: Place) -> bool:
        """Returns whether the other benchmarks and plain text are measured from this point's states."""
        row = self.config.rows[place.row]
        return place.budget in self.config.elsewhere and row.data == "gold" and row.seconds_of is None

    @property
    def _first(self) -> int:
        return self.config.seeds[0]

    def _trained(self, place: Place) -> list[object]:
        """What a tuned tree depends on, besides seed, budget and rate."""
        row: CurveRow = self.config.rows[place.row]
        found: list[object] = [self.shared, self.fingerprints[place.task]]
        found += [self._method(place.row), row.data, row.records]
        if row.data == "solved":
            found.append(self.solutions(place.task).key)
        if row.seconds_of:
            found.append(self.timing(place.row, row.seconds_of, place.task).key)
        if row.rates_of:
            found.append([*self._trained(Place(row.rates_of, place.task, place.budget))])
        return found

    def _method(self, name: str) -> Json:
        assert isinstance(self.rows, dict)
        row = self.rows[name]
        assert isinstance(row, dict)
        return cast("Json", row["method"])
