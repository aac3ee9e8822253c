"""A whole table: every cell that no earlier run has computed, the live table, the report."""

from typing import TYPE_CHECKING

from experiments.config.cli import tuning_status
from experiments.config.overrides import UsageError
from experiments.config.schema import digest
from experiments.config.study import TableRunConfig, shared_identity

if TYPE_CHECKING:
    from experiments.study.lab import Lab


def run(config: TableRunConfig) -> int:
    """Compute and report. Returns 0, 1 after a tuning that diverged, 130 after an interruption.

    Raises: UsageError, ValueError, OSError in one line.
    """
    from experiments.training.preemption import Interrupt

    check_rows(config)

    def body() -> int:
        with Interrupt() as interrupt:
            return run_cells(config, interrupt)

    return tuning_status(body, "go on")


def check_rows(config: TableRunConfig) -> None:
    """Raises: UsageError for a row without a learning rate, or one that names a row that is not there."""
    for name, row in config.rows.items():
        missing = [task for task in config.data.tasks if task not in row.rates]
        if missing:
            raise UsageError(
                f"rows: {name} has no rate for {missing[0]}; python -m experiments.study.rate_search finds one"
            )
        if row.seconds_of and (row.seconds_of not in config.rows or not config.timing_rounds):
            raise UsageError(f"rows: {name} needs the row {row.seconds_of} and timing_rounds above 0")
    needed = ["standard"] + (["larger_standard"] if config.scaling.tuned_teacher else [])
    absent = [name for name in needed if name not in config.rows]
    if config.scaling.tasks and config.larger and absent:
        raise UsageError(f"scaling: needs the row {absent[0]}; add it, or set scaling.tasks to nothing")


def check_programs(lab: "Lab") -> None:
    """Make every row's program once, so that what cannot be made is told before anything is thrown away.

    Raises: UsageError, ValueError, OSError in one line.
    """
    _ = lab.larger if lab.config.larger else None
    for row in lab.config.rows:
        lab.program(row, lab.config.seeds[0])


def run_cells(config: TableRunConfig, interrupt: object) -> int:
    """All cells in order, then the report."""
    from experiments.study import artifacts
    from experiments.study.cells import Plan, Worker
    from experiments.study.lab import Lab
    from experiments.study.live_table import Live
    from experiments.study.report import text_of
    from experiments.study.store import Store
    from experiments.training import run_folder
    from rwkv7_jax.compile_cache import use_compilation_cache

    use_compilation_cache(config.system.compilation_cache)
    lab = Lab(config, interrupt)  # pyright: ignore[reportArgumentType]
    jobs = [job.fingerprint for job in lab.jobs.values()]
    identity = digest([shared_identity(config), lab.student.lm.weights_hash, jobs])
    resumed = run_folder.check(config, identity)
    print(f"{config.model.checkpoint}: {lab.student.lm.summary}" + ("; resuming" if resumed else ""), flush=True)
    if config.overwrite and run_folder.has_results(config.folder):
        check_programs(lab)
    run_folder.claim(config, identity)
    store = Store(config.folder / "cells.jsonl")
    worker, cells = Worker(config, lab, store), Plan(config).cells()
    missing = sum(store.get(cell) is None for cell in cells)
    live, rows = Live(config.data.tasks, len(cells), missing), []
    for cell in cells:
        computed = store.get(cell) is None
        rows.append(worker.run(cell))
        live.show(cell.name, rows[-1], computed)
        lab.interrupt.check()
    body = artifacts.write(config, rows)
    print(f"\n{text_of(body)}\n\nreport: {config.folder / 'report.md'}", flush=True)
    return 0
