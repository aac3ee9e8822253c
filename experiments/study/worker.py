"""How each cell of a table is computed."""

import random
from collections.abc import Callable, Mapping
from functools import cached_property

from experiments.evaluation.evaluator import Evaluator
from experiments.reporting.accuracy_curve import Problem
from experiments.study import diagnostics, observer, timing, tuning
from experiments.study.plan import Plan, records_condition
from experiments.study.records import CellRecord
from experiments.study.resources import Resources
from experiments.study.scaling import Scaling
from experiments.study.store import Cell, CellStore
from rwkv7_jax import State, zero_state
from state_tuning.baselines import methods as baselines
from state_tuning.core import surgery, train
from state_tuning.observer import Observer, state_map


class Worker:
    """Computes cells."""

    def __init__(self, plan: Plan, resources: Resources, store: CellStore[CellRecord]):
        self.plan, self.config, self.resources, self.store = plan, plan.config, resources, store
        self.by_kind: dict[str, Callable[[Cell], Mapping[str, object]]] = {
            "tuned": self._tuned,
            "measured": self._measured,
            "timing": self._timing,
            "observer": lambda cell: observer.quality(resources, self.maps, self.config.observer.every),
            "scaled": lambda cell: {"problems": self._scaled(cell)},
            "queries": self._queries,
            "spectra": lambda cell: {"spectra": diagnostics.spectra(resources)},
        }

    def run(self, cell: Cell) -> CellRecord:
        """Returns the record of a cell, from the store or computed and kept."""
        return self.store.get_or_add(cell, lambda: self._compute(cell))

    def _compute(self, cell: Cell) -> Mapping[str, object]:
        self.resources.interrupt.place = cell.name
        self.resources.make_room()
        return self.by_kind[cell.kind](cell)

    @cached_property
    def maps(self) -> Observer:
        """The observer, fitted."""
        return observer.fit(self.resources, self.config.observer, self.config.seed)

    @cached_property
    def scaling(self) -> Scaling:
        """The jitted parts of test-time scaling."""
        return Scaling(self.resources, self.config.scaling)

    @cached_property
    def correlate(self) -> train.Correlate:
        """The jitted measurement of C."""
        return diagnostics.make_correlate(self.resources.student.lm.model)

    def steps(self, method: str) -> int:
        """Returns how many steps a method takes."""
        methods, steps = self.config.rows, self.config.tune.steps
        other = methods[method].seconds_of
        if other is None:
            return steps
        timed = self.run(self.plan.timing())
        assert timed["kind"] == "timing"
        same = next(name for name in timed["seconds"] if methods[name].method == methods[method].method)
        return timing.steps_for(timed["seconds"], same, other, steps)

    def _timing(self, cell: Cell) -> Mapping[str, object]:
        return {"seconds": timing.measure(self.resources, self.config.timing_rounds)}

    def _tuned(self, cell: Cell) -> Mapping[str, object]:
        resources, (_, method, task, seed, _) = self.resources, cell
        learned, evaluator, steps = resources.methods[method], resources.evaluator(method), self.steps(method)
        rate, program = learned.rates[task], resources.program(method, seed)
        recorder = None
        if records_condition(learned) and learned.seconds_of is None:
            recorder = diagnostics.ConditionRecorder(self.correlate, evaluator.lm.params, self.config.watch_every)
        done = tuning.tune(resources, method, program, task, seed, rate, steps, recorder)
        after, state = tuning.tuned_model(evaluator, program, done.tuned)
        found = tuning.measure(resources, after, state, task)
        loss = sum(found["nll"]) / sum(found["tokens"])
        resources.save_state((method, task, seed), evaluator.lm, state, {"loss": loss})
        details = {"rate": rate, "steps": steps, "skipped": int(done.tuned.skipped), "seconds": round(done.seconds, 5)}
        details |= {"stability": program.stability, "conditions": recorder.found if recorder else []}
        return {**details, "train": done.losses, **found}

    def _measured(self, cell: Cell) -> Mapping[str, object]:
        evaluator, state = self.state_of(cell)
        return tuning.measure(self.resources, evaluator, state, cell.task)

    def state_of(self, cell: Cell) -> tuple[Evaluator, State]:
        """Returns the model and the state of an untrained method."""
        resources, (_, method, task, seed, _) = self.resources, cell
        evaluator = resources.larger if method.startswith("larger") else resources.student
        model = evaluator.lm.model
        if method == "few_shot":
            return evaluator, baselines.few_shot(model, evaluator.lm.params, self._shots(task, seed))
        if method == "soup":
            return evaluator, baselines.soup([resources.load_state("standard", task, s) for s in self.config.seeds])
        if method == "soup_tasks":
            return evaluator, baselines.soup([resources.load_state("standard", t, seed) for t in self.plan.tasks])
        if method == "observer":
            state = resources.load_state("larger_standard", task, seed)
            return evaluator, state_map.transfer(self.maps.down, state, model.config)
        if method == "larger_observer":
            state = resources.load_state("standard", task, seed)
            return evaluator, state_map.transfer(self.maps.up, state, model.config)
        return evaluator, surgery.scale(zero_state(model.config, None), 1.0)

    def _shots(self, task: str, seed: int) -> list[int]:
        """Tokens of solved training records, drawn by the seed."""
        job, tokenizer = self.resources.jobs[task], self.resources.student.lm.tokenizer
        chosen = random.Random(f"{task}/{seed}").sample(job.train, self.config.shots)
        return tokenizer.encode("".join(f"{pair.prompt}{pair.completion}\n\n" for pair in chosen))

    def _scaled(self, cell: Cell) -> list[Problem]:
        return self.scaling.answers(cell.task, cell.seed, self.config.scaling.rate)

    def _queries(self, cell: Cell) -> Mapping[str, object]:
        resources = self.resources
        states = {"vanilla": zero_state(resources.student.lm.model.config, None)}
        for method in ("standard", "upscale"):
            if method in resources.methods:
                states[method] = resources.load_state(method, cell.task, cell.seed)
        return {"norms": diagnostics.queries(resources, cell.task, states)}
