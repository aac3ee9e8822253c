"""Held-out loss by learning rate: one record a cell, the table of means, the picture, the rate to take."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from experiments import build
from experiments.config.commands import Sweep
from experiments.config.schema import RunConfig, config_hash, digest
from experiments.data import survey
from experiments.data.jobs import Job, load_jobs
from experiments.reporting.plots import sweep_curves
from experiments.reporting.tables import markdown_table
from experiments.session import Session, Tuner, finished, make_evaluator, make_tuner, measure_losses, tune
from experiments.study.adjustable_rate import make_adam_with_peak, set_peak
from experiments.study.learning_rates import ByRate, finite_rates, following, loss_or_infinity, losses_by_rate
from experiments.study.store import Cell, CellStore
from experiments.training.metrics_log import MetricsLog
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import held
from rwkv7_jax import zero_state
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache


class SweepRecord(TypedDict):
    """Held-out loss of a task at a rate with a seed, before and after tuning."""

    task: str
    seed: int
    rate: float
    loss_vanilla: float
    loss_tuned: float
    """Infinite where tuning diverges."""


def run(config: RunConfig, own: Sweep, folder: Path, again: str) -> int:
    """Computes the cells that are missing, draws the picture, prints the table and the rate to take.

    Args:
      config: the run.
      own: rates and seeds.
      folder: where the cells are kept.
      again: the words of the command that tunes with these settings, but for the rate.
    """
    use_compilation_cache(config.system.compilation_cache)
    lm, jobs = build.load_model(config.model), load_jobs(config.data, config.evaluate, config.seed)
    base = make_tuner(lm, jobs, config.data, config.tune, config.method, config.seed, make_adam_with_peak)
    start = [] if base.start is None else [base.start]
    identity = digest([config_hash(config), lm.identity, [job.fingerprint for job in jobs], *start])
    evaluator = make_evaluator(lm, config.evaluate)
    survey.tell_all(jobs, lm.tokenizer, config.data, config.tune.steps)
    with held(folder), Interrupt() as interrupt, tempfile.TemporaryDirectory() as scratch:
        log = MetricsLog(Path(scratch) / "steps.jsonl")
        common = Session(evaluator, base, config.data, config.system, config.seed, identity, log, interrupt)

        def session(rate: float) -> Session:
            return common._replace(tuner=at_rate(base, rate))

        store = CellStore[SweepRecord](folder / "sweep.jsonl")

        def measured(rate: float) -> list[SweepRecord]:
            found = []
            for cell in cells(session(rate), rate, jobs, own.seeds, store, Path(scratch)):
                found.append(cell)
                change = f"{cell['loss_vanilla']:.4f} -> {cell['loss_tuned']:.4f}"
                print(f"{cell['task']}: rate {cell['rate']:g}, seed {cell['seed']}: {change}", flush=True)
            return found

        found = climbed(measured, own.tune.learning_rate, extend=own.extend)
    shown = {task: finite_rates(by_rate) for task, by_rate in means(found).items()}
    sweep_curves(folder / "sweep.png", shown, {cell["task"]: cell["loss_vanilla"] for cell in found})
    write_text(folder / "sweep.md", table(found) + "\n")
    print(f"\n{table(found)}\n\npicture: {folder / 'sweep.png'}\n{advice(found, again)}")
    return 0


def at_rate(tuner: Tuner, rate: float) -> Tuner:
    """Returns the same compiled step, begun with another peak rate."""
    settings = dataclasses.replace(tuner.settings, learning_rate=rate)
    return tuner._replace(settings=settings, fresh=lambda: set_peak(tuner.fresh(), rate))


def climbed(
    measured: Callable[[float], list[SweepRecord]], rates: Sequence[float], *, extend: bool
) -> list[SweepRecord]:
    """Returns the records of all rates, and of further ones while the best is the largest or the least.

    Args:
      measured: rate -> its records.
      rates: to begin with; one alone is not extended.
      extend: whether to go on at an end, along the ladder of rates.
    """
    found = [cell for rate in dict.fromkeys(rates) for cell in measured(rate)]
    while extend and len(set(rates)) > 1:
        tried = sorted({cell["rate"] for cell in found})
        further = following(tried, best_rate(found))
        if further is None:
            break
        found += measured(further)
    return found


def cells(
    session: Session,
    rate: float,
    jobs: Sequence[Job],
    seeds: Sequence[int],
    store: CellStore[SweepRecord],
    scratch: Path,
) -> Iterator[SweepRecord]:
    """Yields the record of each seed and task at a rate.

    Those that the store has of the same settings, data and weights are read back, new ones are added to it.

    Args:
      session: what the cells share.
      rate: the peak learning rate.
      jobs: the tasks.
      seeds: of the order of records.
      store: of earlier records.
      scratch: a folder for checkpoints.
    """
    for seed in seeds:
        seeded = session._replace(seed=seed)
        for job in jobs:
            cell = Cell("sweep", "tuned", job.name, seed, [session.identity, rate])
            known = store.get(cell)
            if known is None:
                known = store.add(cell, {"rate": rate, **losses(seeded, job, scratch / cell.key)})
            yield known


def losses(session: Session, job: Job, folder: Path) -> dict[str, float]:
    """Measures the held-out loss before and after tuning, infinite where tuning diverges."""
    before = measure_losses(session, zero_state(session.lm.model.config, None), job)
    after = loss_or_infinity(lambda: measure_losses(*finished(session, tune(session, job, folder)), job))
    return {"loss_vanilla": before, "loss_tuned": after}


def means(found: Sequence[SweepRecord]) -> dict[str, ByRate]:
    """task -> rate -> held-out loss over seeds, after tuning."""
    return losses_by_rate((cell["task"], cell["rate"], cell["loss_tuned"]) for cell in found)


def falls(found: Sequence[SweepRecord]) -> dict[float, float]:
    """rate -> mean fall of the held-out loss over tasks, in the order of rates."""
    by_task, vanilla = means(found), {cell["task"]: cell["loss_vanilla"] for cell in found}
    rates = sorted({cell["rate"] for cell in found})
    return {
        rate: sum(vanilla[task] - by_rate[rate].mean for task, by_rate in by_task.items()) / len(by_task)
        for rate in rates
    }


def best_rate(found: Sequence[SweepRecord]) -> float:
    """The rate with the largest mean fall; of equal ones the least."""
    by_rate = {rate: fall if math.isfinite(fall) else -math.inf for rate, fall in falls(found).items()}
    return max(by_rate, key=lambda rate: (by_rate[rate], -rate))


def advice(found: Sequence[SweepRecord], again: str) -> str:
    """The last line: the rate to take with the command, or that there is none."""
    best, by_rate = best_rate(found), falls(found)
    if not by_rate[best] > 0:
        return "no rate lowers the held-out loss: try more or longer data, more steps, or another method"
    by_task = {task: min(losses, key=lambda rate: losses[rate].mean) for task, losses in means(found).items()}
    alone = ", ".join(f"{task} {rate:g}" for task, rate in by_task.items() if rate != best)
    notes = [f"the held-out loss falls by {by_rate[best]:.3f}"] + ([f"alone: {alone}"] if alone else [])
    ends = {min(by_rate): "below", max(by_rate): "above"}
    notes += [f"an end of the rates that were tried: there may be a better one {ends[best]}"] if best in ends else []
    return f"take rate {best:g} ({'; '.join(notes)}): {again} --tune.learning_rate {best:g}"


def table(found: Sequence[SweepRecord]) -> str:
    """Markdown: mean held-out loss by task and rate, vanilla beside it, and the mean fall over tasks."""
    by_task, vanilla = means(found), {cell["task"]: cell["loss_vanilla"] for cell in found}
    by_rate = falls(found)
    lines = [["task", "vanilla", *(f"rate {rate:g}" for rate in by_rate)]]
    for task, losses in by_task.items():
        lines.append([task, f"{vanilla[task]:.3f}", *(f"{losses[rate].mean:.3f}" for rate in by_rate)])
    return markdown_table([*lines, ["mean fall", "", *(f"{fall:.3f}" for fall in by_rate.values())]])
