"""A study of curves: every selected cell that no earlier run has computed, then the report on all that are there."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from experiments.config.cli import tuning_status
from experiments.config.curves import CurvesConfig, check_curves
from experiments.config.overrides import UsageError
from experiments.config.schema import EvaluateConfig, digest, identified, resolved
from experiments.config.study import Learned
from experiments.data.jobs import Job
from experiments.reporting.json_text import json_text
from experiments.study.artifacts import file_name
from experiments.study.curves import data, plots, report, summary
from experiments.study.curves.plan import CurvePlan, Place
from experiments.study.curves.records import CurveRecord
from experiments.study.curves.report import Study
from experiments.study.curves.worker import CurveWorker
from experiments.study.publish import CELLS_FILE
from experiments.study.report import fill
from experiments.study.resources import Resources
from experiments.study.store import CellStore
from experiments.training import run_folder
from experiments.training.preemption import Interrupt
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache


def run(config: CurvesConfig) -> int:
    """Computes a study and writes its report.

    Returns:
      0; 1 after a tuning that diverged; 130 after an interruption.

    Raises:
      UsageError, ValueError, OSError: in one line.
    """
    check_curves(config)

    def body() -> int:
        with Interrupt() as interrupt, run_folder.held(config.folder):
            return _run_cells(config, interrupt)

    return tuning_status(body, "go on")


def _run_cells(config: CurvesConfig, interrupt: Interrupt) -> int:
    use_compilation_cache(config.system.compilation_cache)
    resources = load_resources(config, interrupt)
    held_out = validation_jobs(config)
    plan = CurvePlan(config, fingerprints(resources.jobs, held_out))
    identity = digest([plan.shared, resources.student.lm.identity])
    resume, overwrite = config.resume == "auto", config.overwrite
    resumed = run_folder.check(config.folder, identity, resume=resume, overwrite=overwrite)
    print(f"{config.model.checkpoint}: {resources.student.lm.summary}" + ("; resuming" if resumed else ""), flush=True)
    run_folder.claim(config.folder, identity, resolved(config), resume=resume, overwrite=overwrite)
    store = CellStore[CurveRecord](config.folder / CELLS_FILE)
    worker, cells = CurveWorker(plan, resources, held_out, store), plan.selected()
    begun, missing = time.perf_counter(), sum(store.get(cell) is None for _, cell in cells)
    for place, cell in cells:
        if store.get(cell) is None:
            record = worker.run(place, cell)
            missing -= 1
            told = f"{place.row}, {place.task}, {place.budget} steps, seed {cell.seed}: {_told(worker, place, record)}"
            print(f"{told}; {missing} cells left, {time.perf_counter() - begun:.0f} s", flush=True)
        interrupt.check()
    for row, task in plan.timed():
        worker.seconds(row, plan.base, task)
        interrupt.check()
    study = gather(plan, store, headlines(resources))
    write(study, config.folder)
    print(f"\n{report.markdown(study, [])}\n\nreport: {config.folder / 'report.md'}", flush=True)
    return 0


def _told(worker: CurveWorker, place: Place, record: CurveRecord) -> str:
    scores = record["scores"][headlines(worker.resources)[place.task]]
    return f"accuracy {100 * sum(scores) / len(scores):.1f}%, rate {record['rate']:g}"


def validation_jobs(config: CurvesConfig) -> dict[str, Job]:
    """Returns the jobs whose held-out records learning rates are chosen on."""
    limits = dataclasses.replace(config.evaluate, split="validation", max_records=max(2, config.search_records))
    return data.jobs_of(config.tasks, config.data, limits, config.seed)


def fingerprints(jobs: Mapping[str, Job], validation: Mapping[str, Job]) -> dict[str, str]:
    """Returns a hash of all records of each benchmark."""
    return {name: digest([job.fingerprint, validation[name].fingerprint]) for name, job in jobs.items()}


def headlines(resources: Resources) -> dict[str, str]:
    """Returns the metric of each benchmark that is its accuracy: where there is a chain, the strict one."""
    found = {}
    for name, job in resources.jobs.items():
        assert job.task is not None
        found[name] = job.task.headline
    return found


def load_resources(config: CurvesConfig, interrupt: Interrupt) -> Resources:
    """Reads the data; of rows with one method the first is timed.

    Raises:
      UsageError: whatever is wrong with the files, in one line.
    """
    methods: dict[str, Learned] = {}
    for name, row in config.rows.items():
        known = any(row.method == other.method for other in methods.values())
        methods[name] = Learned(row.method, timed=not known)
    jobs = data.jobs_of(config.tasks, config.data, config.evaluate, config.seed)
    return Resources(
        config.model, None, config.data, config.evaluate, config.tune, methods, config.seeds[0], jobs,
        config.folder / "states", interrupt,
    )  # fmt: skip


def gather(plan: CurvePlan, store: CellStore[CurveRecord], metrics: dict[str, str]) -> Study:
    """Returns what is there of a study."""
    config, cells = plan.config, plan.cells()
    records = [(place, store.get(cell)) for place, cell in cells]
    found = summary.points([(place, record) for place, record in records if record is not None])
    absent: dict[Place, list[int]] = {}
    for (place, cell), (_, record) in zip(cells, records, strict=True):
        if record is None:
            absent.setdefault(place, []).append(cell.seed)
    settings = identified(config, without=("output", "resume", "overwrite", "system", "select"))
    return Study(
        settings, f"rwkv7 study --config {config.name}", protocol(config.model.checkpoint, config.evaluate, config),
        config.names, tuple(config.rows), config.budgets, config.seeds, metrics, found,
        _seconds(plan, store), grouped(absent, {place.row for place in found}),
    )  # fmt: skip


def _seconds(plan: CurvePlan, store: CellStore[CurveRecord]) -> dict[str, dict[str, float]]:
    """Row -> benchmark -> seconds a step: those of the first row, times the ratio of two rows whose steps are taken in
    turn, so that a busy machine tells no rows apart."""
    found: dict[str, dict[str, float]] = {}
    for row, task in ((name, task) for name in plan.config.rows for task in plan.tasks(name)):
        own, pair = (store.get(plan.timing(one, plan.base, task)) for one in (plan.base, row))
        if own is not None and pair is not None:
            mine, beside = pair["seconds"][row][task], pair["seconds"][plan.base][task]
            found.setdefault(row, {})[task] = own["seconds"][plan.base][task] * mine / beside
    return found


def grouped(absent: Mapping[Place, Sequence[int]], begun: Collection[str]) -> list[str]:
    """Returns missing cells in few words.

    Args:
      absent: the missing seeds of each point.
      begun: rows of which some cell is there; the others are named alone.
    """
    by_curve: dict[tuple[str, str], dict[tuple[int, ...], list[int]]] = {}
    for place, seeds in absent.items():
        if place.row in begun:
            by_curve.setdefault((place.row, place.task), {}).setdefault(tuple(seeds), []).append(place.budget)
    by_gap: dict[tuple[str, str], list[str]] = {}
    for (row, task), gaps in by_curve.items():
        told = [f"{_listed(budgets)} steps (seeds {_listed(seeds)})" for seeds, budgets in gaps.items()]
        by_gap.setdefault((row, " and ".join(told)), []).append(task)
    found = [f"{row} on {', '.join(tasks)}: {gap}" for (row, gap), tasks in by_gap.items()]
    idle = list(dict.fromkeys(place.row for place in absent if place.row not in begun))
    return found + ([f"all of {', '.join(idle)}"] if idle else [])


def _listed(numbers: Sequence[int]) -> str:
    """Numbers by commas; three and more that follow each other by their ends."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def protocol(checkpoint: str, limits: EvaluateConfig, config: CurvesConfig) -> str:
    """Returns how the numbers are measured."""
    return (
        f"Model {file_name(checkpoint)}; the {limits.split} split, at most {limits.max_records} records of each "
        f"benchmark, 0 shots, greedy; NAME+PHRASING is answered after a chain of thought. Batches of "
        f"{config.data.batch_size}, Adam; every row has its own learning rate at every budget, the bottom of one "
        f"ladder of rates by the loss on {config.search_records} validation records with seed {config.seeds[0]}, "
        "climbed from 0.01, 0.1 and 1 at the first budget and from the rate of the budget before at the others. "
        "Intervals: 95%, by t over records crossed with seeds."
    )


def write(study: Study, folder: Path) -> None:
    """Writes report.md, results.json and the pictures."""
    pictures = plots.draw(study, folder)
    write_text(folder / "report.md", f"# {study.config['name']}\n\n{report.markdown(study, pictures)}")
    write_text(folder / "results.json", json_text(report.as_json(study)) + "\n")


def publish(config: CurvesConfig, page: Path) -> str:
    """Fills what stands between the page's markers with what is there, and writes pictures and numbers beside it.

    Raises:
      UsageError: nothing is computed.
      ValueError: the page has no markers.
    """
    check_curves(config)
    path = config.folder / CELLS_FILE
    if not path.is_file():
        raise UsageError(f"{config.folder}: no cell is computed; run rwkv7 study --config {config.name} first")
    with Interrupt() as interrupt:
        resources = load_resources(config, interrupt)
        plan = CurvePlan(config, fingerprints(resources.jobs, validation_jobs(config)))
        study = gather(plan, CellStore[CurveRecord](path), headlines(resources))
    stem = f"{page.stem}-{config.name}"
    pictures = plots.draw(study, page.parent, f"{stem}-")
    fill(page, report.markdown(study, pictures), (report.BEGIN, report.END))
    write_text(page.parent / f"{stem}.json", json_text(report.as_json(study)) + "\n")
    return f"{page}, {stem}.json, {', '.join(pictures)}"
