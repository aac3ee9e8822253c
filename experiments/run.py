"""`python -m experiments.run --config NAME [--key value ...]`: a frozen RWKV-7 without and with a tuned state.

`--config paper_table` runs all methods on all benchmarks with several seeds instead, cell by cell.

Exit status: 0 PASS, 1 FAIL, 2 wrong usage or files (one line), 130 interrupted (the same command resumes).
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.commands.tune import main
from experiments.config.cli import tuning_status
from experiments.config.overrides import UsageError
from experiments.config.schema import RunConfig, config_hash, digest

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from experiments.data.jobs import Job
    from experiments.evaluation.evaluator import Evaluator
    from experiments.methods import Chosen
    from experiments.reporting.run_report import Measurement, Outcome
    from experiments.training.metrics_log import MetricsLog
    from experiments.training.preemption import Interrupt
    from rwkv7_jax import State
    from rwkv7_jax.language_model import LanguageModel
    from state_tuning.core import train

VALUES = ("loss", "grad_norm")
"""Metrics of a step in the rows of metrics.jsonl."""


class Tools(NamedTuple):
    """What all jobs of a run share; each jitted function compiles once a shape."""

    config: RunConfig
    lm: "LanguageModel"
    evaluator: "Evaluator"
    settings: "train.TuneConfig"
    chosen: "Chosen"
    step: "train.TrainStep"
    identity: str
    log: "MetricsLog"
    interrupt: "Interrupt"


def run(config: RunConfig) -> int:
    """Build, tune and measure every job, report. Returns 0 for PASS, 1 for FAIL, 130 for an interruption."""
    from experiments.training import distributed
    from experiments.training.preemption import Interrupt

    def body() -> int:
        with distributed.session(config.mesh) as mesh, Interrupt() as interrupt:
            return run_jobs(config, interrupt, mesh)

    return tuning_status(body, "resume")


def run_jobs(config: RunConfig, interrupt: "Interrupt", mesh: "Mesh | None" = None) -> int:
    """All jobs of a run, finished ones read back, then the report. mesh: the one that is set, if any."""
    from experiments import build
    from experiments.artifacts import finish
    from experiments.data.jobs import load_jobs
    from experiments.training import distributed, run_folder
    from experiments.training.metrics_log import MetricsLog
    from rwkv7_jax.compile_cache import use_compilation_cache

    use_compilation_cache(config.system.compilation_cache)
    jobs = load_jobs(config)
    lm = build.build(config.model)
    identity = digest([config_hash(config), lm.weights_hash, [job.fingerprint for job in jobs]])
    resumed = distributed.lead_first(lambda lead: lead and run_folder.check(config, identity))
    print(
        f"{config.model.checkpoint}: {lm.summary}, {distributed.describe(mesh)}" + ("; resuming" if resumed else ""),
        flush=True,
    )
    check_loop(config, mesh)
    tools = make_tools(config, lm, identity, MetricsLog(config.folder / "metrics.jsonl"), interrupt, jobs)
    distributed.lead_first(lambda lead: (run_folder.claim if lead else run_folder.join)(config, identity))
    outcomes = [run_job(tools, job) for job in jobs]
    return finish(config, lm, outcomes, tools.log)


def check_loop(config: RunConfig, mesh: "Mesh | None") -> None:
    """What the training loop would refuse, found before anything is measured or thrown away.

    Raises:
      UsageError: rows that cannot be cut over the devices, an unknown best_metric, no writer for TensorBoard.
    """
    from experiments.training import distributed
    from experiments.training.profiling import Board

    distributed.Spread(mesh, config.data.batch_size)
    settings = config.system
    if settings.keep_best and settings.best_metric not in VALUES:
        raise UsageError(f"best_metric: {settings.best_metric} is not among {', '.join(VALUES)}")
    with tempfile.TemporaryDirectory() as scratch:
        Board(Path(scratch), settings.tensorboard and distributed.is_lead()).close()


def make_tools(
    config: RunConfig,
    lm: "LanguageModel",
    identity: str,
    log: "MetricsLog",
    interrupt: "Interrupt",
    jobs: "Sequence[Job]" = (),
) -> Tools:
    """The jitted functions and settings that all jobs share; a feature map is fitted to the text of them all."""
    from experiments import methods
    from experiments.build import tune_config
    from experiments.evaluation.evaluator import Evaluator, make_scorer
    from state_tuning.core import train

    limits = config.evaluate
    evaluator = Evaluator(lm, make_scorer(lm.model), limits.batch_size, limits.max_new_tokens)
    settings = tune_config(config.tune)

    def calibration(tokens: int) -> Any:
        return methods.calibration_batch(lm.tokenizer, jobs, config.data, tokens)

    chosen = methods.build(config.method, lm.model, lm.params, settings, calibration, config.seed)
    step = train.make_train_step(chosen.model, chosen.optimizer, settings, chosen.method, chosen.correlate)
    return Tools(config, lm, evaluator, settings, chosen, step, identity, log, interrupt)


def run_job(tools: Tools, job: "Job") -> "Outcome":
    """Vanilla measured, state tuned, tuned state measured and saved; read back if an earlier run did it all."""
    from experiments.artifacts import save_job
    from experiments.reporting.run_report import Outcome
    from rwkv7_jax import zero_state
    from rwkv7_jax.sharding import host

    folder = tools.config.folder / job.name
    if (folder / "outcome.json").is_file():
        return Outcome.read(folder / "outcome.json")
    folder.mkdir(exist_ok=True)
    model = tools.lm.model.config
    tools.interrupt.place = f"step 0 of {job.name}"
    zero = zero_state(model, None)
    vanilla = measure(tools, job, zero, "vanilla")
    tuned = tune(tools, job, folder)
    after, state = finished(tools, tuned)
    measured = vanilla, measure(after, job, state, "tuned")
    return save_job((tools, after), job, (zero, state), measured, int(host(tuned.skipped)))


def finished(tools: Tools, tuned: "train.TuneState") -> "tuple[Tools, State]":
    """The tools with the weights, and the unbatched state, that a tuned tree stands for. Only LoRA changes weights."""
    from rwkv7_jax.sharding import host

    params, state = tools.chosen.finish(tools.lm.params, host(tuned.trainable))
    lm = tools.lm.replace(params=params)
    return tools._replace(lm=lm, evaluator=tools.evaluator._replace(lm=lm)), state


def measure(tools: Tools, job: "Job", state: "State", label: str) -> "Measurement":
    """Held-out losses of each record, a long text's windows summed, and benchmark scores from one initial state."""
    import numpy as np

    from experiments.data.batching import encode_pairs
    from experiments.reporting.run_report import Measurement
    from experiments.training.metrics_log import progress_bar

    parts = [encode_pairs(tools.lm.tokenizer, [pair], tools.config.data) for pair in job.held_out]
    examples = [example for part in parts for example in part]
    first = np.cumsum([0, *map(len, parts[:-1])])
    total = len(examples) + sum(len(job.task.requests(record)) for record in job.records if job.task)
    with progress_bar(total, f"{job.name}: {label}", "seq") as bar:

        def tick(count: int) -> None:
            bar.update(count)
            tools.interrupt.check()

        evaluator = tools.evaluator._replace(tick=tick)
        nll, tokens = evaluator.losses(state, examples)
        scores = evaluator.scores(state, job.task, job.records) if job.task else {}
    return Measurement(np.add.reduceat(nll, first).tolist(), np.add.reduceat(tokens, first).tolist(), scores)


def measure_losses(tools: Tools, state: "State", job: "Job") -> float:
    """Mean held-out completion loss from one initial state, nats per token."""
    from experiments.data.batching import encode_pairs

    nll, tokens = tools.evaluator.losses(state, encode_pairs(tools.lm.tokenizer, job.held_out, tools.config.data))
    return float(nll.sum() / tokens.sum())


def tune(tools: Tools, job: "Job", folder: Path) -> "train.TuneState":
    """The training loop of one job, from its newest checkpoint in `folder`/checkpoints on."""
    import jax

    from experiments.data import batching
    from experiments.training import distributed, loop
    from rwkv7_jax import flops
    from state_tuning.core import train

    config, lm = tools.config, tools.lm
    examples = batching.encode_pairs(lm.tokenizer, job.train, config.data)
    mesh = jax.sharding.get_mesh()
    spread = distributed.Spread(None if mesh.empty else mesh, config.data.batch_size)
    task = loop.Task(
        job.name,
        lambda tuned, batch: tools.step(lm.params, tuned, batch),
        batching.training_batches(examples, config.data.batch_size, config.seed, spread.rows),
        config.tune.steps,
        tools.identity,
        tokens=lambda batch: int(batch["valid"].sum()) * config.data.batch_size / len(spread.rows),
        put=spread.put,
        values=VALUES,
        flops=flops.tuning(lm.model.config),
        title=f"{job.name}: tuning",
    )
    place = loop.Place(folder, folder / "checkpoints", tools.log, tools.interrupt)
    fresh = train.init(tools.chosen.optimizer, tools.chosen.method.init())
    return loop.drain(loop.train(task, fresh, config.system, place))


if __name__ == "__main__":
    sys.exit(main())
