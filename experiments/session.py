"""One run: its jobs loaded, the frozen model measured, its state tuned, the tuned state measured, all reported."""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import artifacts, build, methods
from experiments.artifacts import KeptStates, Measured, RunInfo
from experiments.config.methods import MethodConfig, RewardMethod
from experiments.config.schema import (
    DataConfig,
    EvaluateConfig,
    Json,
    RunConfig,
    SystemConfig,
    TuneConfig,
    config_hash,
    digest,
    identified,
    resolved,
)
from experiments.data import batching, survey
from experiments.data.jobs import Job, load_jobs
from experiments.evaluation import state_scale
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.reinforcement import run as reinforcement
from experiments.reporting.run_report import Measurement, Outcome
from experiments.training import continuing, distributed, loop, run_folder
from experiments.training.metrics_log import MetricsLog, progress_bar
from experiments.training.overfitting import Watch
from experiments.training.preemption import Interrupt
from experiments.training.profiling import Board
from rwkv7_jax import State, flops, load_state, zero_state
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host
from state_tuning.core import train
from state_tuning.core.objective import Batch

VALUES = ("loss", "grad_norm")
"""Metrics of a step in the rows of metrics.jsonl."""
FEW = 2000
"""Records of a job from which the lengths of its batches are estimated."""
VALIDATION = "validation_loss"
"""The held-out loss in the rows of steps at which it is measured."""


class Tuner(NamedTuple):
    """A method ready to be run; its jitted step compiles once a shape."""

    chosen: methods.Chosen
    step: train.TrainStep
    settings: train.TuneConfig
    fresh: Callable[[], train.TuneState]
    """() -> the state before the first step."""
    start: str | None = None
    """Hash of the state that it starts from; none: zero."""


class Session(NamedTuple):
    """What all jobs of a run share."""

    evaluator: Evaluator
    tuner: Tuner
    data: DataConfig
    loop: SystemConfig
    seed: int
    """Of the order of training examples."""
    identity: str
    """Of settings, data and weights."""
    log: MetricsLog
    interrupt: Interrupt
    lengths: tuple[int, ...] = ()
    """That training batches are padded to, see `batching.few_lengths`."""
    patience: int = 0
    """As `TuneConfig.patience`."""

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
    with (
        distributed.session(config.mesh) as mesh,
        Interrupt() as interrupt,
        run_folder.held(folder, lead=distributed.is_lead()),
    ):
        use_compilation_cache(config.system.compilation_cache)
        asked = reinforcement.load(config.method, config.tune, config.data, config.evaluate, config.seed)
        jobs = [one.job for one in asked] or load_jobs(config.data, config.evaluate, config.seed)
        lm = build.load_model(config.model)
        tuner = make_tuner(lm, jobs, config.data, config.tune, config.method, config.seed)
        settings, parts = resolved(config), run_parts(lm, jobs, tuner) | reinforcement.parts(asked)
        old = digest([config_hash(config), lm.identity, [job.fingerprint for job in jobs]])
        identity = continuing.identity(folder, settings, parts, old)
        measured = {job.name: digest([job.held_out, list(job.records)]) for job in jobs}
        going_on = continuing.Run(folder, identity, settings, parts, measured)
        if not config.overwrite:
            distributed.lead_first(lambda lead: lead and continuing.check(going_on))
        resumed = distributed.lead_first(lambda lead: lead and run_folder.check(folder, identity, **keep))
        devices = distributed.describe(mesh) + ("; resuming" if resumed else "")
        print(f"{config.model.checkpoint}: {lm.summary}, {devices}", flush=True)
        check_loop(config.system, config.data, mesh)
        if config.tune.warmup > config.tune.steps and distributed.is_lead():
            limits = f"tune.warmup ({config.tune.warmup}) is above tune.steps ({config.tune.steps})"
            print(f"warning: {limits}: the learning rate never reaches its peak", file=sys.stderr)
        evaluator = make_evaluator(lm, config.evaluate)
        log = MetricsLog(folder / "metrics.jsonl")
        lengths = () if asked else training_lengths(lm, jobs, config.data, tuner.settings.steps)
        session = Session(evaluator, tuner, config.data, config.system, config.seed, identity, log, interrupt, lengths)
        session = session._replace(patience=config.tune.patience)
        distributed.lead_first(
            lambda lead: continuing.claim(going_on, **keep) if lead else run_folder.join(folder, identity)
        )
        told = identified(config)
        info = RunInfo(folder, config.name, config.seed, config.method.kind, told, config.report, config.model)
        if isinstance(config.method, RewardMethod):
            own = (config.method, tuner.chosen, tuner.settings, tuner.fresh, config.data, config.evaluate)
            setting = reinforcement.Setting(lm, *own, config.system, config.seed, identity, log, interrupt)
            return reinforcement.run(setting, info, asked)
        outcomes = [run_job(session, info, job) for job in jobs]
        measured = [survey.held_out_survey(job, lm.tokenizer, config.data) for job in jobs]
        return artifacts.report(info, lm, outcomes, log, survey.protocol(measured, config.data.max_length))


def run_parts(lm: LanguageModel, jobs: Sequence[Job], tuner: Tuner) -> dict[str, Json]:
    """Returns hashes of what the tuned trees of a run depend on besides its settings."""
    parts: dict[str, Json] = {
        "weights": lm.identity,
        "training data": digest([[job.name, job.train] for job in jobs]),
    }
    return parts | ({} if tuner.start is None else {"start (tune.init)": tuner.start})


def check_loop(settings: SystemConfig, data: DataConfig, mesh: Mesh | None) -> None:
    """Checks what the training loop would refuse, before anything is measured or thrown away.

    Raises:
      UsageError: rows that cannot be cut over the devices, an unknown best_metric, no writer for TensorBoard.
    """
    distributed.Spread(mesh, data.batch_size)
    distributed.check_length(mesh, "data.max_length", data.max_length)
    loop.check_best_metric(settings, (*VALUES, VALIDATION) if settings.validate_every else VALUES)
    with tempfile.TemporaryDirectory() as scratch:
        Board(Path(scratch), settings.tensorboard and distributed.is_lead()).close()


def training_lengths(lm: LanguageModel, jobs: Sequence[Job], data: DataConfig, steps: int) -> tuple[int, ...]:
    """Returns the lengths that training batches are padded to: few, where padding costs less than compiling.

    They change no result; the first records of each job show how long they are.
    """
    places: Counter[int] = Counter()
    for job in jobs:
        few = batching.encode_pairs(lm.tokenizer, job.train[:FEW], data)
        places.update(batching.step_places(few, data.batch_size, steps))
    lengths = batching.few_lengths(places, flops.tuning(lm.config))
    if distributed.is_lead() and len(lengths) < len(places):
        few, many = (", ".join(map(str, sorted(part))) for part in (lengths, places))
        print(f"batches of {many} tokens are padded to {few}, which takes less time than to compile", file=sys.stderr)
    return lengths


def make_evaluator(lm: LanguageModel, limits: EvaluateConfig) -> Evaluator:
    """Returns the model with its jitted loss."""
    return Evaluator(lm, make_scorer(lm.model), limits.batch_size, limits.max_new_tokens)


def make_tuner(
    lm: LanguageModel,
    jobs: Sequence[Job],
    data: DataConfig,
    tune: TuneConfig,
    method: MethodConfig,
    seed: int,
    make_optimizer: methods.MakeOptimizer = train.make_optimizer,
) -> Tuner:
    """Returns the jitted tuning of a method; a feature map is fitted to the text of all jobs.

    Raises:
      ValueError: in one line, for settings that do not fit the model.
    """
    settings = build.tune_config(tune)

    def calibration(tokens: int) -> Batch:
        return methods.calibration_batch(lm.tokenizer, jobs, data, tokens)

    chosen = methods.build(method, lm.model, lm.params, settings, calibration, seed, make_optimizer)
    if tune.init is None:
        return Tuner(
            chosen,
            chosen.make_step(settings),
            settings,
            lambda: train.init(chosen.optimizer, chosen.method.init()),
        )
    path = Path(tune.init).expanduser()
    state = load_state(path, layout=tune.init_layout, config=lm.model.config, base_model_hash=lm.weights_hash).state
    start = methods.start_at(chosen, state, settings, tune.init)
    fresh = lambda: train.init(chosen.optimizer, start)  # noqa: E731
    return Tuner(chosen, chosen.make_step(settings), settings, fresh, methods.tree_hash(start))


def run_job(session: Session, info: RunInfo, job: Job) -> Outcome:
    """Measures without a state, tunes, measures the tuned state and saves; reads back what an earlier run finished."""
    folder = info.folder / job.name
    if (folder / artifacts.OUTCOME_FILE).is_file():
        try:
            return Outcome.read(folder / artifacts.OUTCOME_FILE)
        except ValueError as error:
            print(f"warning: {error}; {job.name} is measured again", file=sys.stderr)
    folder.mkdir(exist_ok=True)
    session.interrupt.place = f"step 0 of {job.name}"
    zero, known = zero_state(session.lm.model.config, None), artifacts.earlier(folder)
    before = known.vanilla if known else measure(session, job, zero, "vanilla")
    kept = KeptStates(info, folder, session.lm.weights_hash)
    tuned = tune(session, job, folder, kept)
    after, state = finished(session, tuned)
    if after.lm.params is session.lm.params:
        kept.last(state, int(host(tuned.step)))
    score = known.tuned if known else measure(after, job, state, "tuned")
    vanilla, measured = Measured(session.evaluator, zero, before), Measured(after.evaluator, state, score)
    scale = out_of_scale(session, state, job)
    outcome = artifacts.save_job(info, job, vanilla, measured, int(host(tuned.skipped)), scale)
    kept.finish()
    artifacts.tell_best(job.name, kept, session.log.rows(job.name) if distributed.is_lead() else [])
    return outcome


def out_of_scale(session: Session, state: State, job: Job) -> float | None:
    """Returns how many times larger a state is than the model's own on held-out text, with a warning; else None."""
    few = batching.encode_pairs(session.lm.tokenizer, job.held_out[: state_scale.RECORDS], session.data)
    found = state_scale.out_of_scale(session.evaluator.answerer.scorer, state, few)
    if found is not None and distributed.is_lead():
        times = f"{found:.3g} times as large as those that the model reaches on this text"
        print(f"warning: {job.name}: the tuned state is {times}; a lower tune.learning_rate is safer", file=sys.stderr)
    return found


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


def measure_losses(session: Session, state: State, job: Job, records: int | None = None) -> float:
    """Returns the mean completion loss of the first held-out records from one initial state, nats per token."""
    examples = batching.encode_pairs(session.lm.tokenizer, job.held_out[:records], session.data)
    nll, tokens = session.evaluator.losses(state, examples)
    return float(nll.sum() / tokens.sum())


def tune(session: Session, job: Job, folder: Path, kept: KeptStates | None = None) -> train.TuneState:
    """Runs the training loop of one job, from its newest checkpoint in `folder`/checkpoints on; `kept` keeps the best
    state, and the last one if the run is interrupted."""
    lm, data, tuner = session.lm, session.data, session.tuner
    parts = batching.encode_each(lm.tokenizer, job.train, data)
    if kept and distributed.is_lead():
        survey.tell(job, lm.tokenizer, parts, data, tuner.settings.steps)
    examples = [example for part in parts for example in part]
    mesh = jax.sharding.get_mesh()
    spread = distributed.Spread(None if mesh.empty else mesh, data.batch_size)
    task = loop.Task(
        job.name,
        lambda tuned, batch: tuner.step(lm.params, tuned, batch),
        batching.training_batches(examples, data.batch_size, session.seed, spread.rows, session.lengths),
        tuner.settings.steps,
        session.identity,
        tokens=lambda batch: int(batch["valid"].sum()) * data.batch_size / len(spread.rows),
        put=spread.put,
        values=VALUES,
        flops=flops.tuning(lm.model.config),
        title=f"{job.name}: tuning",
        **(_watched(session, job, kept) if kept else {}),
    )
    place = loop.Place(folder, folder / "checkpoints", session.log, session.interrupt)
    return loop.drain(loop.train(task, tuner.fresh(), session.loop, place))


def _watched(session: Session, job: Job, kept: KeptStates) -> dict[str, Any]:
    """Returns the arguments of a `loop.Task` that measure the held-out loss and keep states as files."""
    settings, best = session.loop, kept.folder / artifacts.BEST_FILE
    watch = Watch(job.name, session.log, settings.validate_every, session.patience, best)

    def validate(tuned: train.TuneState) -> dict[str, float]:
        after, state = finished(session, tuned)
        loss = measure_losses(after, state, job, settings.validate_records)
        if after.lm.params is session.lm.params:
            kept.best(state, int(host(tuned.step)), loss)
        return {VALIDATION: loss}

    def leave(tuned: train.TuneState, step: int) -> None:
        after, state = finished(session, tuned)
        if after.lm.params is session.lm.params:
            path = kept.last(state, step)
            if distributed.is_lead():
                print(f"the state after step {step} is {path}", file=sys.stderr)

    if not settings.validate_every:
        return {"leave": leave}
    evaluation = {"evaluate": validate, "evaluate_every": settings.validate_every}
    return {**evaluation, "enough": watch.enough, "leave": leave}
