"""`python -m experiments.study.rate_search --config paper_table`: the learning rate of each row on each benchmark.

For every row: held-out loss on the validation split after the table's number of steps, at 0.01, 0.1 and 1, and then
along a ladder of rates from the best of them until both its neighbours are worse. One JSON line a try is kept in
rates.jsonl, found again by settings, data and weights, so an interrupted search goes on with the same command. Prints
what to put into the config.

`rows=NAME,...` limits the search. `rows=test_time` looks for the step size of test-time scaling, by accuracy, and needs
the rates of the states that it uses.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.config.cli import documented, take_word
from experiments.config.overrides import UsageError
from experiments.config.schema import check, load_config, resolved
from experiments.config.study import TableRunConfig
from experiments.run import split_config
from experiments.study.store import Cell, Store

if TYPE_CHECKING:
    from experiments.training.preemption import Interrupt

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
STARTS = (1e-2, 1e-1, 1.0)


def climb(loss: Callable[[float], float], ladder: Sequence[float] = LADDER, starts: Sequence[float] = STARTS) -> float:
    """The rate of `ladder` at the local minimum of `loss` below the best of `starts`; an end may be one."""
    known: dict[int, float] = {}

    def value(index: int) -> float:
        if not 0 <= index < len(ladder):
            return float("inf")
        if index not in known:
            known[index] = loss(ladder[index])
        return known[index]

    best = min(map(ladder.index, starts), key=value)
    while True:
        other = min((best, best + 1, best - 1), key=value)
        if other == best:
            return ladder[best]
        best = other


class Search:
    """Tries, each kept when it is done."""

    def __init__(self, config: TableRunConfig, interrupt: "Interrupt"):
        from experiments.study.lab import Lab
        from experiments.training.run_folder import TRIES_FILE

        config.folder.mkdir(parents=True, exist_ok=True)
        self.config, self.lab, self.seed = config, Lab(config, interrupt), config.seeds[0]
        self.store = Store(config.folder / TRIES_FILE)

    def best(self, row: str) -> dict[str, float]:
        """benchmark -> chosen rate."""
        self.lab.make_room()
        program = None

        def made() -> Any:
            nonlocal program
            program = program or self.lab.program(row, self.seed)
            return program

        return {task: climb(partial(self._loss, row, task, made)) for task in self.lab.jobs}

    def best_scaling(self) -> dict[str, float]:
        """The step size of test-time scaling by accuracy, one for all benchmarks, climbing from 0.01."""
        from experiments.study import scaling

        config, made = self.config, scaling.program(self.lab)
        for row in ("standard", "larger_standard"):
            for task in config.scaling.tasks:
                if not self.lab.state_file(row, task, self.seed).is_file():
                    self._tune(row, task, self.lab.program(row, self.seed), config.rows[row].rates[task], keep=True)

        def wrong(rate: float) -> float:
            errors = [self._scaling_error(task, made, rate) for task in config.scaling.tasks]
            return sum(errors) / len(errors)

        return dict.fromkeys(config.scaling.tasks, climb(wrong, starts=(1e-2,)))

    def _loss(self, row: str, task: str, made: Callable[[], Any], rate: float) -> float:
        """Validation loss, infinite where tuning diverges."""
        from state_tuning.core.non_finite import NonFiniteError

        def value() -> float:
            try:
                return self._tune(row, task, made(), rate)
            except NonFiniteError:
                return float("inf")

        return self._kept(Cell("rate", row, task, self.seed, self.settings(row, task, rate)), rate, value)

    def settings(self, row: str, task: str, rate: float) -> Any:
        """What a try depends on, weights and data included."""
        return [
            rate_settings(self.config, row, rate),
            self.lab.side(row).lm.weights_hash,
            self.lab.jobs[task].fingerprint,
        ]

    def _tune(self, row: str, task: str, program: Any, rate: float, keep: bool = False) -> float:
        from experiments.study import tuning

        side, job = self.lab.side(row), self.lab.jobs[task]
        done = tuning.tune(self.lab, side, program, task, self.seed, rate, self.config.tune.steps)
        after, state = tuning.finished(side, program, done.tuned)
        if keep:
            self.lab.save_state((row, task, self.seed), side, state, {"rate": rate})
        nll, tokens = tuning.held_out_loss(self.lab, after, state, job)
        loss = float(nll.sum() / tokens.sum())
        return loss if math.isfinite(loss) else math.inf

    def _scaling_error(self, task: str, made: Any, rate: float) -> float:
        """Part of wrong answers after the last step."""
        from experiments.study import scaling, summary

        def value() -> float:
            problems = scaling.run(self.lab, made, task, self.seed, rate)
            return 1 - sum(map(summary.adapted, problems)) / len(problems)

        both = [self.settings(row, task, rate) for row in ("standard", "larger_standard")]
        settings = [*both, resolved(self.config)["scaling"]]
        return self._kept(Cell("rate", "test_time", task, self.seed, settings), rate, value)

    def _kept(self, cell: Cell, rate: float, value: Callable[[], float]) -> float:
        known = self.store.get(cell)
        if known is None:
            self.lab.interrupt.place = f"{cell.row}, {cell.task}, rate {rate:g}"
            known = self.store.add(cell, {"rate": rate, "loss": value()})
            print(f"{cell.row}, {cell.task}: rate {rate:g}: {known['loss']:.4f}", flush=True)
        return known["loss"]


def rate_settings(config: TableRunConfig, row: str, rate: float) -> Any:
    """The settings that a try depends on."""
    plain = resolved(config)
    tune = {**plain["tune"], "learning_rate": rate}
    method = dataclasses.asdict(config.rows[row].method)
    model = config.larger if config.rows[row].model == "larger" else config.model.checkpoint
    return [plain["data"], plain["evaluate"]["max_records"], tune, method, model]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""

    def run(args: list[str]) -> int:
        from experiments.training.preemption import Interrupt
        from rwkv7_jax.compile_cache import use_compilation_cache

        asked, rest = take_word(args, "rows")
        config = load_config(*split_config(rest), TableRunConfig)
        check(config)
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, split="validation"))
        rows = (
            asked.split(",")
            if asked is not None
            else [name for name, row in config.rows.items() if row.seconds_of is None]
        )
        if wrong := [name for name in rows if name not in (*config.rows, "test_time")]:
            raise UsageError(f"rows: no row {wrong[0]!r} (rows: {', '.join(config.rows)}, test_time)")
        use_compilation_cache(config.system.compilation_cache)
        with Interrupt() as interrupt:
            search = Search(config, interrupt)
            for name in rows:
                rates = search.best_scaling() if name == "test_time" else search.best(name)
                print(f"    {name!r}: {rates},", flush=True)
        return 0

    return documented(argv, lambda: str(__doc__), run, "interrupted; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
