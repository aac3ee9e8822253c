"""A whole table: every cell that no earlier run has computed, the table in progress, the report."""

from collections.abc import Mapping

from experiments.config.cli import tuning_status
from experiments.config.overrides import UsageError
from experiments.config.schema import digest, resolved
from experiments.config.study import Learned, ScalingConfig, TableRunConfig
from experiments.data.survey import tell_all
from experiments.study import artifacts
from experiments.study.plan import Plan
from experiments.study.progress import ProgressTable
from experiments.study.publish import CELLS_FILE
from experiments.study.records import CellRecord
from experiments.study.report import text_of
from experiments.study.resources import Resources, load_resources
from experiments.study.store import CellStore
from experiments.study.worker import Worker
from experiments.training import run_folder
from experiments.training.preemption import Interrupt
from rwkv7_jax.compile_cache import use_compilation_cache


def run(config: TableRunConfig) -> int:
    """Computes a table and writes its report.

    Args:
      config: the table.

    Returns:
      0; 1 after a tuning that diverged; 130 after an interruption.

    Raises:
      UsageError, ValueError, OSError: in one line.
    """
    check_methods(config.rows, config.data.names, config.timing_rounds)
    if config.larger:
        check_scaling(config.scaling, config.rows)
    plan = Plan(config)

    def body() -> int:
        with Interrupt() as interrupt, run_folder.held(config.folder):
            return run_cells(plan, interrupt)

    return tuning_status(body, "go on")


def check_methods(methods: Mapping[str, Learned], tasks: tuple[str, ...], timing_rounds: int) -> None:
    """Checks the tuned methods.

    Raises:
      UsageError: a method has no learning rate, or names a method that is not there.
    """
    for name, learned in methods.items():
        missing = [task for task in tasks if task not in learned.rates]
        if missing:
            raise UsageError(f"rows: {name} has no rate for {missing[0]}; rwkv7 study rates finds one")
        if learned.seconds_of and (learned.seconds_of not in methods or not timing_rounds):
            raise UsageError(f"rows: {name} needs the row {learned.seconds_of} and timing_rounds above 0")


def check_scaling(settings: ScalingConfig, methods: Mapping[str, Learned]) -> None:
    """Checks the states that test-time scaling starts from.

    Raises:
      UsageError: the table has no such method.
    """
    needed = ["standard"] + (["larger_standard"] if settings.tuned_teacher else [])
    absent = [name for name in needed if name not in methods]
    if settings.tasks and absent:
        raise UsageError(f"scaling: needs the row {absent[0]}; add it, or set scaling.tasks to nothing")


def check_programs(resources: Resources) -> None:
    """Makes every method's program once, before anything is thrown away.

    Raises:
      UsageError, ValueError, OSError: in one line, for what cannot be made.
    """
    _ = resources.larger if resources.larger_model else None
    for name in resources.methods:
        resources.program(name, resources.first_seed)


def run_cells(plan: Plan, interrupt: Interrupt) -> int:
    """Computes all cells in order, then writes the report."""
    config = plan.config
    use_compilation_cache(config.system.compilation_cache)
    resources = load_resources(plan, interrupt)
    identity = digest([plan.shared, *resources.identity])
    resume, overwrite = config.resume == "auto", config.overwrite
    resumed = run_folder.check(config.folder, identity, resume=resume, overwrite=overwrite)
    summary = resources.student.lm.summary
    print(f"{config.model.checkpoint}: {summary}" + ("; resuming" if resumed else ""), flush=True)
    if config.overwrite and run_folder.has_results(config.folder):
        check_programs(resources)
    run_folder.claim(config.folder, identity, resolved(config), resume=resume, overwrite=overwrite)
    store = CellStore[CellRecord](config.folder / CELLS_FILE)
    worker, cells = Worker(plan, resources, store), plan.cells()
    missing = sum(store.get(cell) is None for cell in cells)
    if missing:
        tell_all(resources.jobs.values(), resources.student.lm.tokenizer, config.data, config.tune.steps)
    progress, records = ProgressTable(plan.tasks, len(cells), missing), list[CellRecord]()
    for cell in cells:
        computed = store.get(cell) is None
        records.append(worker.run(cell))
        progress.show(cell.name, records[-1], computed)
        resources.interrupt.check()
    body = artifacts.write(plan, records)
    print(f"\n{text_of(body)}\n\nreport: {config.folder / 'report.md'}", flush=True)
    return 0
