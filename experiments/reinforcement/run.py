"""The jobs of a run that learns from rewards: measured at the start, tuned, measured again, reported.

The loop, its checkpoints and its files are those of tuning on text (`experiments.training.loop`).
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from experiments import artifacts, methods
from experiments.artifacts import KeptStates, RunInfo
from experiments.config.methods import GRPOMethod, MethodConfig, RewardMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, EvaluateConfig, Json, SystemConfig, TuneConfig, digest
from experiments.reinforcement import problems, report
from experiments.reinforcement.batches import prompt_batches
from experiments.reinforcement.passes import Measurer, Passes
from experiments.reinforcement.problems import Asked, encode, judge, padded
from experiments.reinforcement.report import Counting, Outcome
from experiments.reporting import plots
from experiments.reporting.tables import text_table
from experiments.training import distributed, loop
from experiments.training.continuing import BEST_FILE, OUTCOME_FILE
from experiments.training.metrics_log import MetricsLog, progress_bar
from experiments.training.preemption import Interrupt
from rwkv7_jax.checkpoint.files import CheckpointError, write_text
from rwkv7_jax.checkpoint.states import load_state, save_state, state_metadata
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host
from state_tuning.core import train
from state_tuning.reinforcement import learning
from state_tuning.reinforcement.evolution import ESConfig
from state_tuning.reinforcement.grpo import GRPOConfig
from state_tuning.reinforcement.learning import Learner, Step
from state_tuning.reinforcement.sampling import Prompts, Sampler

VALUES = ("loss", "reward", "mixed", "ended", "length", "grad_norm", "update_norm")
"""Metrics of a step in the rows of metrics.jsonl; of GRPO also those of `OF_GRPO`."""
OF_GRPO = ("kl", "clipped")
VALIDATION = "validation_reward"
"""Mean reward of greedy answers to the first held-out prompts, in the rows of steps at which it is measured."""


class Setting(NamedTuple):
    """What all jobs of a run share."""

    lm: LanguageModel
    method: RewardMethod
    chosen: methods.Chosen
    tune: train.TuneConfig
    fresh: Callable[[], train.TuneState]
    """() -> the state before the first step."""
    data: DataConfig
    evaluate: EvaluateConfig
    system: SystemConfig
    seed: int
    identity: str
    log: MetricsLog
    interrupt: Interrupt


def load(method: MethodConfig, tune: TuneConfig, data: DataConfig, evaluate: EvaluateConfig, seed: int) -> list[Asked]:
    """Returns the jobs of a method that learns from rewards, none of another.

    Raises:
      UsageError: as `check` and `problems.load`.
    """
    if not isinstance(method, RewardMethod):
        return []
    check(method, tune, data)
    return problems.load(method, data, evaluate, seed)


def parts(jobs: Sequence[Asked]) -> dict[str, Json]:
    """Returns hashes of what the tuned trees depend on besides settings, weights and prompts."""
    return {"records and rewards": digest([job.fingerprint for job in jobs])} if jobs else {}


def check(method: RewardMethod, tune: TuneConfig, data: DataConfig) -> None:
    """Checks what learning from rewards has no use for, before anything is measured.

    Raises:
      UsageError: a setting that would do nothing.
    """
    if tune.patience:
        raise UsageError(f"tune.patience goes by held-out losses, which method.kind {method.kind} has not")
    if tune.segment or tune.exact_segments:
        raise UsageError(f"tune.segment goes with tuning on text, not with method.kind {method.kind}")
    if tune.accumulate > 1 and not isinstance(method, GRPOMethod):
        raise UsageError(f"tune.accumulate: method.kind {method.kind} has no backward pass to cut into parts")
    if data.learn != DataConfig.learn:
        raise UsageError(f"data.learn goes with tuning on text, not with method.kind {method.kind}")


def run(setting: Setting, info: RunInfo, jobs: Sequence[Asked]) -> int:
    """Runs the jobs, finished ones read back, and reports; returns 0 for PASS, 1 for FAIL.

    Raises:
      Interrupted: all is saved, and an equal run goes on from there.
      NonFiniteError: tuning diverged.
      RewardError: the reward failed, in one line.
    """
    outcomes = [run_job(setting, info, job) for job in jobs]
    method = setting.method
    counting = Counting(method.reward, method.right, method.passes, info.seed)
    body = report.results(info.settings, setting.lm.weights_hash, counting, outcomes)
    if distributed.is_lead():
        publish(setting, info, outcomes, body)
    return 0 if body["verdict"] == "PASS" else 1


def run_job(setting: Setting, info: RunInfo, asked: Asked) -> Outcome:
    """Measures the start, tunes, measures the tuned state and saves; reads back what an earlier run finished."""
    folder, name = info.folder / asked.job.name, asked.job.name
    if (folder / OUTCOME_FILE).is_file():
        try:
            return Outcome.read(folder / OUTCOME_FILE)
        except ValueError as error:
            print(f"warning: {error}; {name} is measured again", file=sys.stderr)
    folder.mkdir(exist_ok=True)
    setting.interrupt.place = f"step 0 of {name}"
    train_prompts, held_out = _prompts(setting, asked)
    measurer = _measurer(setting, asked, held_out)
    before = _measured(setting, asked, measurer, setting.fresh().trainable, "before")
    kept = KeptStates(info, folder, setting.lm.weights_hash)
    tuned = _tune(setting, asked, folder, train_prompts, measurer, kept)
    after = _measured(setting, asked, measurer, tuned.trainable, "after")
    _, state = setting.chosen.finish(setting.lm.params, host(tuned.trainable))
    outcome = Outcome(name, before, after, _samples(info, asked, before, after), int(host(tuned.skipped)))
    if distributed.is_lead():
        metrics = {"reward": float(np.mean(after.greedy)), "reward_before": float(np.mean(before.greedy))}
        _save(info, kept, artifacts.STATE_FILE, state, metrics)
        write_text(folder / artifacts.PROMPT_FILE, asked.held_out[0].prompt)
        if info.report.plots:
            plots.state_maps(folder / "state.png", np.asarray(host(state.wkv)), f"{info.name}: tuned state for {name}")
        outcome.write(folder / OUTCOME_FILE)
    kept.finish()
    return outcome


def publish(setting: Setting, info: RunInfo, outcomes: Sequence[Outcome], body: report.RewardResults) -> None:
    """Draws, writes and prints the report."""
    k, pictures = setting.method.passes, []
    if info.report.plots:
        sides = {name: (job["before"], job["after"]) for name, job in body["jobs"].items()}
        levels = {name: (first["reward"].mean, last["reward"].mean) for name, (first, last) in sides.items()}
        report.reward_curves(info.folder / "reward.png", {o.name: setting.log.rows(o.name) for o in outcomes}, levels)
        pictures = ["reward.png", *(f"{outcome.name}/state.png" for outcome in outcomes)]
    tokenizer = setting.lm.tokenizer_name
    commands = [artifacts.command(info.model, tokenizer, info.folder / outcome.name) for outcome in outcomes]
    report.write(info.folder, body, k, pictures, commands)
    print("\n".join(["", text_table(report.table_lines(body, k)), "", *report.remarks(body), body["protocol"]]))
    print("\nuse a tuned state:\n" + "\n".join(f"  {line}" for line in commands))
    print(f"\nreport: {info.folder / 'report.md'}" + (f", pictures: {', '.join(pictures)}" if pictures else ""))
    print(f"{report.CRITERION}\nreproducibility hash: {body['sha256']}\nRESULT: {body['verdict']}", flush=True)


def make_step(setting: Setting, asked: Asked) -> Step:
    """Returns the step of a job; the start, for the KL and for the size of the noise, is the state before its first."""
    method, lm, chosen = setting.method, setting.lm, setting.chosen
    sampler = Sampler(lm, method.max_new_tokens, method.temperature, method.stop)
    key = jax.random.fold_in(jax.random.key(setting.seed), 0)
    scores = judge(asked.train, asked.reward)
    learner = Learner(lm, chosen.method, setting.tune, chosen.optimizer, sampler, method.samples, key, scores)
    start, names = setting.fresh().trainable, GRPOConfig if isinstance(method, GRPOMethod) else ESConfig
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(names)}
    if isinstance(method, GRPOMethod):
        return learning.grpo_step(learner, GRPOConfig(**values), start)
    return learning.evolution_step(learner, ESConfig(**values), start)


def _prompts(setting: Setting, asked: Asked) -> tuple[Prompts, Prompts]:
    """The prompts of both parts as rows, and a line about them."""
    tokenizer, longest, name = setting.lm.tokenizer, setting.data.max_length, asked.job.name
    (train_rows, cut), (held_out, cut_too) = (
        encode(tokenizer, part, longest) for part in (asked.train, asked.held_out)
    )
    method, steps, size = setting.method, setting.tune.steps, setting.data.batch_size
    if distributed.is_lead():
        print(
            f"{name}: {len(train_rows):,} training prompts; {steps:,} steps of {size} prompts with {method.samples} "
            f"samples each are {steps * size / len(train_rows):.3g} passes; {len(held_out):,} held-out prompts; "
            f"reward {asked.reward.name}",
            *(f"{name}: {note}" for note in asked.job.notes),
            sep="\n",
            flush=True,
        )
        if cut + cut_too:
            limit = f"data.max_length {longest}"
            print(
                f"warning: {name}: {cut + cut_too:,} prompts are longer than {limit} and lost their start",
                file=sys.stderr,
            )
    return padded(train_rows, held_out)


def _measurer(setting: Setting, asked: Asked, prompts: Prompts) -> Measurer:
    method, lm = setting.method, setting.lm
    sampler = Sampler(lm, method.max_new_tokens, method.temperature or 1.0, method.stop)
    greedy = Sampler(lm, method.max_new_tokens, 0.0, method.stop)
    states = jax.jit(setting.chosen.method.graft, static_argnums=1)
    key = jax.random.fold_in(jax.random.key(setting.seed), 1)
    scores = judge(asked.held_out, asked.reward)
    rows = setting.evaluate.batch_size
    return Measurer(greedy, sampler, states, scores, prompts, method.passes, rows, key, lambda count: None)


def _measured(setting: Setting, asked: Asked, measurer: Measurer, tree: PyTree, label: str) -> Passes:
    with progress_bar(2 * len(asked.held_out), f"{asked.job.name}: {label}", "prompt") as bar:

        def tick(count: int) -> None:
            bar.update(count)
            setting.interrupt.check()

        return measurer._replace(tick=tick).passes(tree, len(asked.held_out))


def _tune(
    setting: Setting, asked: Asked, folder: Path, prompts: Prompts, measurer: Measurer, kept: KeptStates
) -> train.TuneState:
    """Runs the training loop of a job, from its newest checkpoint on."""
    step, method, system = make_step(setting, asked), setting.method, setting.system
    metrics = (*VALUES, *OF_GRPO) if isinstance(method, GRPOMethod) else VALUES

    def state_of(tuned: train.TuneState) -> PyTree:
        return setting.chosen.finish(setting.lm.params, host(tuned.trainable))[1]

    def validate(tuned: train.TuneState) -> dict[str, float]:
        reward = float(np.mean(measurer.rewards(tuned.trainable, system.validate_records)[0]))
        state = state_of(tuned)
        before = best_reward(folder)
        if distributed.is_lead() and (before is None or reward > before[1]):
            _save(kept.info, kept, BEST_FILE, state, {"step": int(host(tuned.step)), VALIDATION: reward})
        return {VALIDATION: reward}

    def leave(tuned: train.TuneState, index: int) -> None:
        path = kept.last(state_of(tuned), index)
        if distributed.is_lead():
            print(f"the state after step {index} is {path}", file=sys.stderr)

    task = loop.Task(
        asked.job.name,
        step,
        prompt_batches(prompts, setting.data.batch_size, setting.seed),
        setting.tune.steps,
        setting.identity,
        tokens=lambda batch: float(np.sum(batch.prompts.valid)) * method.samples + step.tokens,
        put=lambda batch: batch,
        values=metrics,
        title=f"{asked.job.name}: tuning",
        evaluate=validate if system.validate_every else None,
        evaluate_every=system.validate_every or 1,
        leave=leave,
    )
    place = loop.Place(folder, folder / "checkpoints", setting.log, setting.interrupt)
    return loop.drain(loop.train(task, setting.fresh(), system, place))


def best_reward(folder: Path) -> tuple[int, float] | None:
    """Returns the step and the held-out reward of the best state of a job; None if there is none that can be read."""
    try:
        found = json.loads(load_state(folder / BEST_FILE).metadata["metrics"])
        return int(found["step"]), float(found[VALIDATION])
    except (OSError, CheckpointError, ValueError, KeyError, TypeError):
        return None


def _save(info: RunInfo, kept: KeptStates, name: str, state: PyTree, metrics: Mapping[str, object]) -> None:
    metadata = state_metadata(kept.base_hash, info.method, task=kept.folder.name, config=info.settings, metrics=metrics)
    save_state(kept.folder / name, host(state), metadata=metadata)


def _samples(info: RunInfo, asked: Asked, before: Passes, after: Passes) -> list[dict[str, str]]:
    """The first held-out prompts with their greedy answers."""
    sides = zip(asked.held_out, before.texts, after.texts, strict=False)
    return [
        {"prompt": one.prompt, "wanted": one.gold, "vanilla": first, "tuned": last}
        for (one, first, last), _ in zip(sides, range(info.report.samples), strict=False)
    ]
