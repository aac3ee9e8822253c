"""Held-out loss by learning rate: one record a cell, the table of means, the picture."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from experiments import build
from experiments.config.commands import Sweep
from experiments.config.schema import RunConfig, config_hash, digest
from experiments.data.jobs import Job, load_jobs
from experiments.reporting.plots import sweep_curves
from experiments.reporting.tables import markdown_table
from experiments.session import Session, Tuner, finished, make_evaluator, make_tuner, measure_losses, tune
from experiments.study.learning_rates import ByRate, finite_rates, loss_or_infinity, losses_by_rate
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


def run(config: RunConfig, own: Sweep, folder: Path) -> int:
    """Computes the cells that are missing, draws the picture and prints the table."""
    use_compilation_cache(config.system.compilation_cache)
    lm, jobs = build.load_model(config.model), load_jobs(config.data, config.evaluate, config.seed)
    identity = digest([config_hash(config), lm.weights_hash, [job.fingerprint for job in jobs]])
    evaluator = make_evaluator(lm, config.evaluate)

    def tuner(rate: float) -> Tuner:
        tune = dataclasses.replace(config.tune, learning_rate=rate)
        return make_tuner(lm, jobs, config.data, tune, config.method, config.seed)

    found = []
    with held(folder), Interrupt() as interrupt, tempfile.TemporaryDirectory() as scratch:
        log = MetricsLog(Path(scratch) / "steps.jsonl")

        def session(rate: float) -> Session:
            return Session(evaluator, tuner(rate), config.data, config.system, config.seed, identity, log, interrupt)

        for cell in cells(session, jobs, own, CellStore(folder / "sweep.jsonl"), Path(scratch)):
            found.append(cell)
            change = f"{cell['loss_vanilla']:.4f} -> {cell['loss_tuned']:.4f}"
            print(f"{cell['task']}: rate {cell['rate']:g}, seed {cell['seed']}: {change}", flush=True)
    shown = {task: finite_rates(by_rate) for task, by_rate in means(found).items()}
    sweep_curves(folder / "sweep.png", shown, {cell["task"]: cell["loss_vanilla"] for cell in found})
    write_text(folder / "sweep.md", table(found) + "\n")
    print(f"\n{table(found)}\n\npicture: {folder / 'sweep.png'}")
    return 0


def cells(
    make_session: Callable[[float], Session],
    jobs: Sequence[Job],
    own: Sweep,
    store: CellStore[SweepRecord],
    scratch: Path,
) -> Iterator[SweepRecord]:
    """Yields the record of each task, rate and seed.

    Those that the store has of the same settings, data and weights are read back, new ones are added to it.

    Args:
      make_session: learning rate -> what its cells share.
      jobs: the tasks.
      own: rates and seeds.
      store: of earlier records.
      scratch: a folder for checkpoints.
    """
    for rate in own.tune.learning_rate:
        session = make_session(rate)
        for seed in own.seeds:
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


def table(found: Sequence[SweepRecord]) -> str:
    """Markdown: mean held-out loss by task and rate, vanilla beside it, and the mean fall over tasks."""
    by_task, vanilla = means(found), {cell["task"]: cell["loss_vanilla"] for cell in found}
    rates = sorted({cell["rate"] for cell in found})
    lines = [["task", "vanilla", *(f"rate {rate:g}" for rate in rates)]]
    for task, by_rate in by_task.items():
        lines.append([task, f"{vanilla[task]:.3f}", *(f"{by_rate[rate].mean:.3f}" for rate in rates)])
    falls = [
        sum(vanilla[task] - by_rate[rate].mean for task, by_rate in by_task.items()) / len(by_task) for rate in rates
    ]
    return markdown_table([*lines, ["mean fall", "", *(f"{fall:.3f}" for fall in falls)]])
