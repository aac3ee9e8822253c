"""One run: its jobs loaded, the frozen model measured, its state tuned, the tuned state measured, all reported."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import artifacts, build, methods
from experiments.artifacts import Measured, RunInfo
from experiments.config.loop import LoopConfig
from experiments.config.methods import MethodConfig
from experiments.config.schema import (
    DataConfig,
    EvaluateConfig,
    RunConfig,
    TuneConfig,
    config_hash,
    digest,
    identified,
    resolved,
)
from experiments.data import batching, survey
from experiments.data.jobs import Job, load_jobs
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.reporting.run_report import Measurement, Outcome
from experiments.training import distributed, loop, run_folder
from experiments.training.metrics_log import MetricsLog, progress_bar
from experiments.training.preemption import Interrupt
from experiments.training.profiling import Board
from rwkv7_jax import State, flops, zero_state
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host
from state_tuning.core import train
from state_tuning.core.objective import Batch

VALUES = ("loss", "grad_norm")
"""Metrics of a step in the rows of metrics.jsonl."""


class Tuner(NamedTuple):
    """A method ready to be run; its jitted step compiles once a shape."""

    chosen: methods.Chosen
    step: train.TrainStep
    settings: train.TuneConfig


class Session(NamedTuple):
    """What all jobs of a run share."""

    evaluator: Evaluator
    tuner: Tuner
    data: DataConfig
    loop: LoopConfig
    seed: int
    """Of the order of training examples."""
    identity: str
    """Of settings, data and weights."""
    log: MetricsLog
    interrupt: Interrupt

    @property
    def lm(self) -> LanguageModel:
        """The model that is measured; its weights are the frozen ones, unless the method has changed them."""
        return self.evaluator.lm


def run(config: RunConfig) -> int:
    """Builds, tunes and measures every job, finished ones read back, and reports.

    Args:
      config: the run.

    Returns:
      0 for PASS, 1 for FAIL.

    Raises:
      UsageError, ValueError, OSError: in one line; nothing is thrown away before settings are known to be sound.
      Interrupted: all is saved, and an equal run goes on from there.
      NonFiniteError: tuning diverged.
    """
    folder, keep = config.folder, {"resume": config.resume == "auto", "overwrite": config.overwrite}
    with distributed.session(config.mesh) as mesh, Interrupt() as interrupt:
        use_compilation_cache(config.system.compilation_cache)
        jobs = load_jobs(config.data, config.evaluate, config.seed)
        lm = build.load_model(config.model)
        identity = digest([config_hash(config), lm.weights_hash, [job.fingerprint for job in jobs]])
        resumed = distributed.lead_first(lambda lead: lead and run_folder.check(folder, identity, **keep))
        devices = distributed.describe(mesh) + ("; resuming" if resumed else "")
        print(f"{config.model.checkpoint}: {lm.summary}, {devices}", flush=True)
        check_loop(config.system, config.data.batch_size, mesh)
        evaluator = make_evaluator(lm, config.evaluate)
        tuner = make_tuner(lm, jobs, config.data, config.tune, config.method, config.seed)
        log = MetricsLog(folder / "metrics.jsonl")
        session = Session(evaluator, tuner, config.data, config.system, config.seed, identity, log, interrupt)
        distributed.lead_first(
            lambda lead: (
                run_folder.claim(folder, identity, resolved(config), **keep)
                if lead
                else run_folder.join(folder, identity)
            )
        )
        settings = identified(config)
        info = RunInfo(folder, config.name, config.seed, config.method.kind, settings, config.report, config.model)
        outcomes = [run_job(session, info, job) for job in jobs]
        measured = [survey.held_out_survey(job, lm.tokenizer, config.data) for job in jobs]
        return artifacts.report(info, lm, outcomes, log, survey.protocol(measured, config.data.max_length))


def check_loop(settings: LoopConfig, batch_size: int, mesh: Mesh | None) -> None:
    """Checks what the training loop would refuse, before anything is measured or thrown away.

    Raises:
      UsageError: rows that cannot be cut over the devices, an unknown best_metric, no writer for TensorBoard.
    """
    distributed.Spread(mesh, batch_size)
    loop.check_best_metric(settings, VALUES)
    with tempfile.TemporaryDirectory() as scratch:
        Board(Path(scratch), settings.tensorboard and distributed.is_lead()).close()


def make_evaluator(lm: LanguageModel, limits: EvaluateConfig) -> Evaluator:
    """Returns the model with its jitted loss."""
    return Evaluator(lm, make_scorer(lm.model), limits.batch_size, limits.max_new_tokens)


def make_tuner(
    lm: LanguageModel, jobs: Sequence[Job], data: DataConfig, tune: TuneConfig, method: MethodConfig, seed: int
) -> Tuner:
    """Returns the jitted tuning of a method; a feature map is fitted to the text of all jobs.

    Raises:
      ValueError: in one line, for settings that do not fit the model.
    """
    settings = build.tune_config(tune)

    def calibration(tokens: int) -> Batch:
        return methods.calibration_batch(lm.tokenizer, jobs, data, tokens)

    chosen = methods.build(method, lm.model, lm.params, settings, calibration, seed)
    return Tuner(chosen, chosen.make_step(settings), settings)


def run_job(session: Session, info: RunInfo, job: Job) -> Outcome:
    """Measures without a state, tunes, measures the tuned state and saves; reads back what an earlier run finished."""
    folder = info.folder / job.name
    if (folder / artifacts.OUTCOME_FILE).is_file():
        return Outcome.read(folder / artifacts.OUTCOME_FILE)
    folder.mkdir(exist_ok=True)
    session.interrupt.place = f"step 0 of {job.name}"
    zero = zero_state(session.lm.model.config, None)
    vanilla = Measured(session.evaluator, zero, measure(session, job, zero, "vanilla"))
    tuned = tune(session, job, folder)
    after, state = finished(session, tuned)
    measured = Measured(after.evaluator, state, measure(after, job, state, "tuned"))
    return artifacts.save_job(info, job, vanilla, measured, int(host(tuned.skipped)))


def finished(session: Session, tuned: train.TuneState) -> tuple[Session, State]:
    """Returns the session with the weights, and the unbatched state, that a tuned tree stands for.

    Only LoRA changes weights.
    """
    params, state = session.tuner.chosen.finish(session.lm.params, host(tuned.trainable))
    return session._replace(evaluator=session.evaluator._replace(lm=session.lm.replace(params=params))), state


def measure(session: Session, job: Job, state: State, label: str) -> Measurement:
    """Measures held-out losses of each record, a long text's windows summed, and benchmark scores from one initial
    state."""
    parts = [batching.encode_pairs(session.lm.tokenizer, [pair], session.data) for pair in job.held_out]
    examples = [example for part in parts for example in part]
    first = np.cumsum([0, *map(len, parts[:-1])])
    total = len(examples) + sum(len(job.task.requests(record)) for record in job.records if job.task)
    with progress_bar(total, f"{job.name}: {label}", "seq") as bar:

        def tick(count: int) -> None:
            bar.update(count)
            session.interrupt.check()

        evaluator = session.evaluator._replace(tick=tick)
        nll, tokens = evaluator.losses(state, examples)
        scores = evaluator.scores(state, job.task, job.records) if job.task else {}
    return Measurement(np.add.reduceat(nll, first).tolist(), np.add.reduceat(tokens, first).tolist(), scores)


def measure_losses(session: Session, state: State, job: Job) -> float:
    """Returns the mean held-out completion loss from one initial state, nats per token."""
    examples = batching.encode_pairs(session.lm.tokenizer, job.held_out, session.data)
    nll, tokens = session.evaluator.losses(state, examples)
    return float(nll.sum() / tokens.sum())


def tune(session: Session, job: Job, folder: Path) -> train.TuneState:
    """Runs the training loop of one job, from its newest checkpoint in `folder`/checkpoints on."""
    lm, data, tuner = session.lm, session.data, session.tuner
    parts = batching.encode_each(lm.tokenizer, job.train, data)
    if distributed.is_lead():
        survey.tell(job, lm.tokenizer, parts, data, tuner.settings.steps)
    examples = [example for part in parts for example in part]
    mesh = jax.sharding.get_mesh()
    spread = distributed.Spread(None if mesh.empty else mesh, data.batch_size)
    task = loop.Task(
        job.name,
        lambda tuned, batch: tuner.step(lm.params, tuned, batch),
        batching.training_batches(examples, data.batch_size, session.seed, spread.rows),
        tuner.settings.steps,
        session.identity,
        tokens=lambda batch: int(batch["valid"].sum()) * data.batch_size / len(spread.rows),
        put=spread.put,
        values=VALUES,
        flops=flops.tuning(lm.model.config),
        title=f"{job.name}: tuning",
    )
    place = loop.Place(folder, folder / "checkpoints", session.log, session.interrupt)
    fresh = train.init(tuner.chosen.optimizer, tuner.chosen.method.init())
    return loop.drain(loop.train(task, fresh, session.loop, place))
