"""The learning rate of each tuned method on each benchmark.

For every method: held-out loss on the validation split after the table's number of steps, at 0.01, 0.1 and 1, and then
along a ladder of rates from the best of them until both its neighbours are worse. One JSON line a try is kept in
rates.jsonl, found again by settings, data and weights, so an interrupted search goes on with the same command.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from experiments.config.overrides import UsageError
from experiments.config.schema import identified
from experiments.data.survey import tell_all
from experiments.study import tuning
from experiments.study.learning_rates import climb, loss_or_infinity
from experiments.study.plan import Plan, searched_methods
from experiments.study.records import RateRecord
from experiments.study.resources import Program, load_resources
from experiments.study.scaling import Scaling
from experiments.study.store import Cell, CellStore
from experiments.study.summary import adapted_is_right
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import TRIES_FILE, held
from rwkv7_jax.compile_cache import use_compilation_cache

TEST_TIME = "test_time"
"""Stands for the step size of test-time scaling among the names of methods."""


def search(plan: Plan, methods: Sequence[str] | None = None) -> int:
    """Searches the learning rates of methods and prints what to put into the config.

    Args:
      plan: the table; the split that is scored is the validation split, whatever its config says.
      methods: names of tuned methods; "test_time" is the step size of test-time scaling, by accuracy, which needs the
        rates of the states that it uses. None: all methods that have rates of their own.

    Returns:
      0.

    Raises:
      UsageError: there is no such method.
      Interrupted: a signal came; the same search goes on.
    """
    config = plan.config
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, split="validation"))
    names = searched_methods(config.rows) if methods is None else methods
    if wrong := [name for name in names if name not in (*config.rows, TEST_TIME)]:
        raise UsageError(f"rows: no row {wrong[0]!r} (rows: {', '.join(config.rows)}, {TEST_TIME})")
    use_compilation_cache(config.system.compilation_cache)
    with Interrupt() as interrupt, held(config.folder):
        found = RateSearch(Plan(config), interrupt)
        shared = found.resources
        tell_all(shared.jobs.values(), shared.student.lm.tokenizer, config.data, config.tune.steps)
        for name in names:
            rates = found.best_scaling() if name == TEST_TIME else found.best(name)
            print(f"    {name!r}: {rates},", flush=True)
    return 0


class RateSearch:
    """Tries, each kept when it is done."""

    def __init__(self, plan: Plan, interrupt: Interrupt):
        self.config, self.settings = plan.config, identified(plan.config)
        self.resources, self.seed = load_resources(plan, interrupt), plan.config.seeds[0]
        self.store = CellStore[RateRecord](plan.config.folder / TRIES_FILE)

    def best(self, method: str) -> dict[str, float]:
        """Returns benchmark -> chosen rate."""
        self.resources.make_room()
        program = None

        def made() -> Program:
            nonlocal program
            program = program or self.resources.program(method, self.seed)
            return program

        return {task: climb(partial(self._loss, method, task, made)) for task in self.resources.jobs}

    def best_scaling(self) -> dict[str, float]:
        """Returns the step size of test-time scaling by accuracy, one for all benchmarks, climbing from 0.01."""
        resources, tasks = self.resources, self.config.scaling.names
        scaling = Scaling(resources, self.config.scaling)
        for method in ("standard", "larger_standard"):
            for task in tasks:
                if not resources.state_file(method, task, self.seed).is_file():
                    rate, program = resources.methods[method].rates[task], resources.program(method, self.seed)
                    self._tune(method, task, program, rate, keep=True)

        def wrong(rate: float) -> float:
            errors = [self._scaling_error(scaling, task, rate) for task in tasks]
            return sum(errors) / len(errors)

        return dict.fromkeys(tasks, climb(wrong, starts=(1e-2,)))

    def _loss(self, method: str, task: str, made: Callable[[], Program], rate: float) -> float:
        """Validation loss, infinite where tuning diverges."""
        cell = Cell("rate", method, task, self.seed, self._try_settings(method, task, rate))
        return self._kept(cell, rate, lambda: loss_or_infinity(lambda: self._tune(method, task, made(), rate)))

    def _try_settings(self, method: str, task: str, rate: float) -> list[object]:
        """What a try depends on, weights and data included."""
        resources, settings = self.resources, self.settings
        evaluate, tune = settings["evaluate"], settings["tune"]
        assert isinstance(evaluate, dict)
        assert isinstance(tune, dict)
        learned = resources.methods[method]
        model = resources.larger_model if learned.model == "larger" else resources.model.checkpoint
        chosen = dataclasses.asdict(learned.method)
        return [
            [settings["data"], evaluate["max_records"], {**tune, "learning_rate": rate}, chosen, model],
            resources.evaluator(method).lm.identity,
            resources.jobs[task].fingerprint,
        ]

    def _tune(self, method: str, task: str, program: Program, rate: float, keep: bool = False) -> float:
        resources, evaluator = self.resources, self.resources.evaluator(method)
        done = tuning.tune(resources, method, program, task, self.seed, rate, self.config.tune.steps)
        after, state = tuning.tuned_model(evaluator, program, done.tuned)
        if keep:
            resources.save_state((method, task, self.seed), evaluator.lm, state, {"rate": rate})
        nll, tokens = tuning.held_out_loss(resources, after, state, resources.jobs[task])
        return float(nll.sum() / tokens.sum())

    def _scaling_error(self, scaling: Scaling, task: str, rate: float) -> float:
        """Part of wrong answers after the last step."""

        def value() -> float:
            problems = scaling.answers(task, self.seed, rate)
            return 1 - sum(map(adapted_is_right, problems)) / len(problems)

        both = [self._try_settings(method, task, rate) for method in ("standard", "larger_standard")]
        cell = Cell("rate", TEST_TIME, task, self.seed, [*both, self.settings["scaling"]])
        return self._kept(cell, rate, value)

    def _kept(self, cell: Cell, rate: float, value: Callable[[], float]) -> float:
        known = self.store.get(cell)
        if known is None:
            self.resources.interrupt.place = f"{cell.method}, {cell.task}, rate {rate:g}"
            known = self.store.add(cell, {"rate": rate, "loss": value()})
            print(f"{cell.method}, {cell.task}: rate {rate:g}: {known['loss']:.4f}", flush=True)
        return known["loss"]
