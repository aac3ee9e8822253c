"""Which cells a table has, in order, and how each is computed."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from experiments.config.methods import UpscaleMethod
from experiments.config.schema import resolved
from experiments.config.study import TableRunConfig, shared_identity
from experiments.study import diagnostics, scaling, timing, tuning
from experiments.study import observer as observe
from experiments.study.lab import Lab, Side
from experiments.study.store import Cell, Store
from rwkv7_jax import State, zero_state
from state_tuning.baselines import methods as baselines
from state_tuning.core import surgery
from state_tuning.observer import state_map

ALL = "all"
"""In a cell's name: it is about all rows or benchmarks."""


class Plan:
    """The cells of a config. Their settings hold all that their results depend on, other cells included."""

    def __init__(self, config: TableRunConfig):
        self.config, self.shared = config, shared_identity(config)
        self.plain = resolved(config)
        self.tasks = list(config.data.tasks)

    def cells(self) -> list[Cell]:
        """In the order in which they are computed: what others need comes first."""
        config, larger = self.config, self.config.larger is not None
        found = [self.measured("vanilla", task) for task in self.tasks]
        found += [self.measured("few_shot", t, s) for s in config.seeds for t in self.tasks if config.shots]
        found += [self.timing()] if config.timing_rounds else []
        own = [name for name, row in config.rows.items() if row.seconds_of is None]
        later = [name for name, row in config.rows.items() if row.seconds_of is not None]
        for rows in (own, later):
            found += [self.tuned(r, t, s) for r in rows for s in config.seeds for t in self.tasks]
        if "standard" in config.rows:
            found += [self.measured("soup", task) for task in self.tasks]
            found += [self.measured("soup_tasks", t, s) for s in config.seeds for t in self.tasks]
            found += [self.queries(task) for task in self.tasks]
        if any(type(row.method) is UpscaleMethod for row in config.rows.values()):
            found += [Cell("spectra", ALL, ALL, config.seeds[0], [self.shared, self.plain["rows"]])]
        if larger and config.observer.rows and "larger_standard" in config.rows:
            found += [self.measured("larger_vanilla", task) for task in self.tasks]
            found += [Cell("observer", ALL, ALL, config.seed, self.observer)]
            for row in ("observer", "larger_observer"):
                found += [self.measured(row, t, s) for s in config.seeds for t in self.tasks]
        if larger and config.scaling.tasks:
            found += [self.scaled(t, s) for s in config.seeds for t in config.scaling.tasks]
        return found

    def tuned(self, row: str, task: str, seed: int) -> Cell:
        """A state that is tuned and measured."""
        config, plain = self.config, self.plain
        tune = {name: value for name, value in plain["tune"].items() if name != "learning_rate"}
        wanted = [self.shared, tune, plain["rows"][row]["method"], config.rows[row].rates.get(task)]
        wanted += [config.larger] if config.rows[row].model == "larger" else []
        wanted += [self.timing().key, config.rows[row].seconds_of] if config.rows[row].seconds_of else []
        wanted += [config.watch_every] if row in ("standard", "dbp", "whitened") else []
        return Cell("tuned", row, task, seed, wanted)

    def measured(self, row: str, task: str, seed: int | None = None) -> Cell:
        """A state that follows from others, or from nothing, and is measured."""
        config, seeds = self.config, self.config.seeds
        seed = seeds[0] if seed is None else seed
        wanted: list[Any] = [self.shared]
        if row == "few_shot":
            wanted.append(config.shots)
        if row == "soup":
            wanted += [self.tuned("standard", task, s).key for s in seeds]
        if row == "soup_tasks":
            wanted += [self.tuned("standard", t, seed).key for t in self.tasks]
        if row.startswith("larger"):
            wanted.append(config.larger)
        if row == "observer":
            wanted += [self.observer, self.tuned("larger_standard", task, seed).key]
        if row == "larger_observer":
            wanted += [self.observer, self.tuned("standard", task, seed).key]
        return Cell("measured", row, task, seed, wanted)

    def timing(self) -> Cell:
        """Seconds per step of every row."""
        rows = [self.plain["rows"][name]["method"] for name in timing.timed_rows(self.config)]
        settings = [self.shared, self.plain["tune"], rows, self.config.timing_rounds]
        return Cell("timing", ALL, ALL, self.config.seeds[0], settings)

    def queries(self, task: str) -> Cell:
        """|q_t|."""
        seed = self.config.seeds[0]
        return Cell("queries", ALL, task, seed, [self.tuned(r, task, seed).key for r in self._looked_at])

    def scaled(self, task: str, seed: int) -> Cell:
        """Test-time scaling."""
        settings = {name: value for name, value in self.plain["scaling"].items() if name != "tasks"}
        rows = ["standard"] + (["larger_standard"] if self.config.scaling.tuned_teacher else [])
        keys = [self.tuned(row, task, seed).key for row in rows]
        return Cell("scaled", "test_time", task, seed, [self.shared, settings, self.config.larger, keys])

    @property
    def observer(self) -> Any:
        """What the maps depend on."""
        return [self.shared, self.plain["observer"], self.config.larger, self.config.seed]

    @property
    def _looked_at(self) -> list[str]:
        return [name for name in ("standard", "upscale") if name in self.config.rows]


class Worker:
    """Computes cells."""

    def __init__(self, config: TableRunConfig, lab: Lab, store: Store):
        self.config, self.lab, self.store, self.plan = config, lab, store, Plan(config)
        self.by_kind: dict[str, Callable[[Cell], dict[str, Any]]] = {
            "tuned": self._tuned,
            "measured": self._measured,
            "timing": lambda cell: {"seconds": timing.measure(lab)},
            "observer": lambda cell: observe.report(lab, self.maps),
            "scaled": lambda cell: {"problems": self._scaled(cell)},
            "queries": self._queries,
            "spectra": lambda cell: {"spectra": diagnostics.spectra(lab)},
        }

    def run(self, cell: Cell) -> dict[str, Any]:
        """The row of a cell, from the store or computed and kept."""
        known = self.store.get(cell)
        if known is None:
            self.lab.interrupt.place = cell.name
            self.lab.make_room()
            known = self.store.add(cell, self.by_kind[cell.kind](cell))
        return known

    @cached_property
    def maps(self) -> Any:
        """The observer, fitted."""
        return observe.fit(self.lab)

    @cached_property
    def adapting(self) -> Any:
        """The jitted parts of test-time scaling."""
        return scaling.program(self.lab)

    @cached_property
    def correlate(self) -> Any:
        """The jitted measurement of C."""
        return diagnostics.correlations(self.lab)

    def steps(self, row: str) -> int:
        """How many steps a row takes."""
        steps, other = self.config.tune.steps, self.config.rows[row].seconds_of
        if other is None:
            return steps
        seconds = self.run(self.plan.timing())["seconds"]
        same = next(r for r in seconds if self.config.rows[r].method == self.config.rows[row].method)
        return timing.steps_for(seconds, same, other, steps)

    def _tuned(self, cell: Cell) -> dict[str, Any]:
        row, task, seed = cell.row, cell.task, cell.seed
        side, steps, rate = self.lab.side(row), self.steps(row), self.config.rows[row].rates[task]
        program = self.lab.program(row, seed)
        look = None
        if diagnostics.watchable(self.lab, row) and self.config.rows[row].seconds_of is None:
            look = diagnostics.Conditions(self.correlate, side.lm.params, self.config.watch_every)
        done = tuning.tune(self.lab, side, program, task, seed, rate, steps, look)
        after, state = tuning.finished(side, program, done.tuned)
        found = tuning.measure(self.lab, after, state, task)
        self.lab.save_state((row, task, seed), side, state, {"loss": sum(found["nll"]) / sum(found["tokens"])})
        details = {"rate": rate, "steps": steps, "skipped": int(done.tuned.skipped), "seconds": round(done.seconds, 5)}
        details |= {"stability": program.stability, "conditions": look.found if look else []}
        return {**details, "train": done.losses, **found}

    def _measured(self, cell: Cell) -> dict[str, Any]:
        side, state = self.state_of(cell)
        return tuning.measure(self.lab, side, state, cell.task)

    def state_of(self, cell: Cell) -> tuple[Side, State]:
        """The model and the state of an untrained row."""
        lab, row, task, seed = self.lab, cell.row, cell.task, cell.seed
        side = lab.larger if row.startswith("larger") else lab.student
        model = side.lm.model
        if row == "few_shot":
            return side, baselines.few_shot(model, side.lm.params, self._shots(task, seed))
        if row == "soup":
            return side, baselines.soup([lab.load_state("standard", task, s) for s in self.config.seeds])
        if row == "soup_tasks":
            return side, baselines.soup([lab.load_state("standard", t, seed) for t in self.plan.tasks])
        if row == "observer":
            return side, state_map.transfer(self.maps.down, lab.load_state("larger_standard", task, seed), model.config)
        if row == "larger_observer":
            return side, state_map.transfer(self.maps.up, lab.load_state("standard", task, seed), model.config)
        return side, surgery.scale(zero_state(model.config, None), 1.0)

    def _shots(self, task: str, seed: int) -> list[int]:
        """Tokens of solved training records, drawn by the seed."""
        import random

        job, tokenizer = self.lab.jobs[task], self.lab.student.lm.tokenizer
        chosen = random.Random(f"{task}/{seed}").sample(job.train, self.config.shots)
        return tokenizer.encode("".join(f"{pair.prompt}{pair.completion}\n\n" for pair in chosen))

    def _scaled(self, cell: Cell) -> list[dict[str, Any]]:
        return scaling.run(self.lab, self.adapting, cell.task, cell.seed, self.config.scaling.rate)

    def _queries(self, cell: Cell) -> dict[str, Any]:
        lab = self.lab
        states = {"vanilla": zero_state(lab.student.lm.model.config, None)}
        for row in ("standard", "upscale"):
            if row in self.config.rows:
                states[row] = lab.load_state(row, cell.task, cell.seed)
        return {"norms": diagnostics.queries(lab, cell.task, states)}
