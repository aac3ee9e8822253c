"""What a run leaves behind: state files with the command that uses them, pictures, samples, the report."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config.schema import Json, ModelConfig, ReportConfig
from experiments.data.jobs import Job
from experiments.data.jsonl import Pair
from experiments.data.samples import prompt_and_answer
from experiments.evaluation.evaluator import Evaluator
from experiments.reporting import plots, run_report
from experiments.reporting.run_report import Measurement, Outcome, RunResults
from experiments.reporting.tables import text_table
from experiments.training.continuing import BEST_FILE, EARLIER_FILE, OUTCOME_FILE
from experiments.training.distributed import is_lead
from experiments.training.metrics_log import MetricsLog, Row
from rwkv7_jax import State, checkpoint
from rwkv7_jax.checkpoint.files import CheckpointError, write_text
from rwkv7_jax.checkpoint.names import weights_hash
from rwkv7_jax.checkpoint.states import load_state, save_state, state_metadata
from rwkv7_jax.functional import Params
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host

STATE_FILE, PROMPT_FILE, WEIGHTS_FILE = "state.safetensors", "prompt.txt", "model.safetensors"
LAST_FILE = "last.safetensors"
"""The state of a job that is not finished, after its last step; `OUTCOME_FILE`, written last, marks it as finished."""


class RunInfo(NamedTuple):
    """What the files of a run say about it."""

    folder: Path
    name: str
    seed: int
    """Of the bootstrap."""
    method: str
    settings: dict[str, Json]
    """All that can change a result."""
    report: ReportConfig
    model: ModelConfig
    """As the run named it."""


class Measured(NamedTuple):
    """A model, an initial state, and what they score."""

    evaluator: Evaluator
    state: State
    measurement: Measurement


class KeptStates(NamedTuple):
    """The states of a job that are kept while it is tuned, as files for every command that takes a state."""

    info: RunInfo
    folder: Path
    """That of the job."""
    base_hash: str

    def best(self, state: State, step: int, loss: float) -> None:
        """Keeps a state if its held-out loss is below that of the one that is kept."""
        before = self.best_loss()
        if is_lead() and (before is None or loss < before[1]):
            self._write(BEST_FILE, state, {"step": step, "validation_loss": loss})

    def best_loss(self) -> tuple[int, float] | None:
        """Returns the step and the held-out loss of the best state; None if there is none that can be read."""
        try:
            found = json.loads(load_state(self.folder / BEST_FILE).metadata["metrics"])
            return int(found["step"]), float(found["validation_loss"])
        except (OSError, CheckpointError, ValueError, KeyError, TypeError):
            return None

    def last(self, state: State, step: int) -> Path:
        """Keeps the state of the last step so far, and returns where."""
        if is_lead():
            self._write(LAST_FILE, state, {"step": step})
        return self.folder / LAST_FILE

    def finish(self) -> None:
        """Removes what the files of a finished job say too."""
        if is_lead():
            for name in (LAST_FILE, EARLIER_FILE):
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, state: State, metrics: dict[str, object]) -> None:
        info, task = self.info, self.folder.name
        metadata = state_metadata(self.base_hash, info.method, task=task, config=info.settings, metrics=metrics)
        save_state(self.folder / name, host(state), metadata=metadata)


def earlier(folder: Path) -> Outcome | None:
    """Returns the measurements of a finished job whose samples are made anew; None if there are none."""
    try:
        return Outcome.read(folder / EARLIER_FILE)
    except (OSError, ValueError):
        return None


def tell_best(name: str, kept: KeptStates, rows: Sequence[Row]) -> None:
    """Says at which step the held-out loss of a job was least, if that was before the last one."""
    best = kept.best_loss()
    at_end = [row["validation_loss"] for row in rows[-1:] if "validation_loss" in row]
    if best and at_end and best[1] < at_end[0]:
        print(
            f"{name}: the held-out loss rises at the end: {best[1]:.4f} at step {best[0]}, {at_end[0]:.4f} at step "
            f"{rows[-1]['step']}; the state of step {best[0]} is {kept.folder / BEST_FILE}",
            file=sys.stderr,
        )


def save_job(
    info: RunInfo, job: Job, vanilla: Measured, tuned: Measured, skipped: int, scale: float | None = None
) -> Outcome:
    """Writes the state file, pictures, samples and, last, the outcome of a job, which marks it as finished.

    Changed weights (LoRA) are written beside the state.

    Args:
      info: the run.
      job: the job.
      vanilla: the frozen model from the zero state.
      tuned: the model from the tuned state, with its weights if the method has changed them.
      skipped: updates that were not applied.
      scale: how many times larger the tuned state is than the model's own, where it is out of scale.

    Returns:
      The outcome.
    """
    headline = job.task.headline if job.task else None
    print(f"{job.name}: samples{' and pictures' if info.report.plots else ''}", file=sys.stderr, flush=True)
    chosen = sample_pairs(info.report, job.held_out)
    prompts = [prompt for prompt, _ in chosen]
    without, with_state = (
        side.evaluator.answers(side.state, prompts, (), info.report.sample_tokens) for side in (vanilla, tuned)
    )
    samples = [
        {"prompt": prompt, "wanted": wanted, "vanilla": before, "tuned": after}
        for (prompt, wanted), before, after in zip(chosen, without, with_state, strict=True)
    ]
    outcome = Outcome(job.name, headline, vanilla.measurement, tuned.measurement, samples, skipped, scale)
    state, frozen, params = host(tuned.state), vanilla.evaluator.lm, tuned.evaluator.lm.params
    changed = host(params) if params is not frozen.params else None
    if is_lead():
        write_job(info, outcome, state, frozen.weights_hash, changed)
    return outcome


def write_job(info: RunInfo, outcome: Outcome, state: State, base_hash: str, changed: Params | None) -> None:
    """Writes the files of a job.

    Args:
      info: the run.
      outcome: of the job.
      state: the tuned state, unbatched.
      base_hash: of the frozen weights.
      changed: the weights, if the method has changed them.
    """
    folder = info.folder / outcome.name
    if changed is not None:
        checkpoint.save(folder / WEIGHTS_FILE, changed)
        base_hash = weights_hash(changed)
    metrics = run_report.summarise(outcome, info.seed)
    metadata = state_metadata(base_hash, info.method, task=outcome.name, config=info.settings, metrics=metrics)
    save_state(folder / STATE_FILE, state, metadata=metadata)
    write_text(folder / PROMPT_FILE, outcome.samples[0]["prompt"] if outcome.samples else "")
    if info.report.plots:
        maps = np.asarray(getattr(state.wkv, "s", state.wkv))
        plots.state_maps(folder / "state.png", maps, f"{info.name}: tuned state for {outcome.name}")
    outcome.write(folder / OUTCOME_FILE)


def sample_pairs(settings: ReportConfig, held_out: Sequence[Pair]) -> list[tuple[str, str]]:
    """Returns (prompt, wanted) of the samples: the user's prompt, or those of the first held-out records."""
    if settings.prompt is not None:
        return [(settings.prompt, "")]
    return [prompt_and_answer(pair) for pair in held_out[: settings.samples]]


def command(model: ModelConfig, tokenizer: str, folder: Path) -> str:
    """Returns the shell command that continues the saved prompt from the saved state.

    Args:
      model: the model of the run.
      tokenizer: its tokenizer, which weights in `folder` have not beside them.
      folder: that of the job.
    """
    changed = (folder / WEIGHTS_FILE).is_file()
    weights = str(folder / WEIGHTS_FILE) if changed else model.checkpoint
    chosen = tokenizer if changed else model.tokenizer
    words = ["rwkv7", "generate", "--model.checkpoint", weights, "--state", str(folder / STATE_FILE)]
    words += ["--model.tokenizer", chosen] if chosen != "auto" else []
    return shlex.join([*words, "--temperature", "0", "--prompt", "-"]) + f" < {shlex.quote(str(folder / PROMPT_FILE))}"


def report(info: RunInfo, lm: LanguageModel, outcomes: Sequence[Outcome], log: MetricsLog, measured: str) -> int:
    """Prints and writes the report of a run, `measured` says over which tokens; returns 0 for PASS, 1 for FAIL."""
    body = run_report.results(info.settings, info.seed, lm.weights_hash, protocol(outcomes, measured), outcomes)
    if is_lead():
        publish(info, lm, outcomes, log, body)
    return 0 if body["verdict"] == "PASS" else 1


def publish(info: RunInfo, lm: LanguageModel, outcomes: Sequence[Outcome], log: MetricsLog, body: RunResults) -> None:
    """Draws, writes and prints the report."""
    pictures = []
    if info.report.plots:
        curves = {o.name: [(row["step"], row["loss"]) for row in log.rows(o.name)] for o in outcomes}
        held_out = {name: (row["loss_vanilla"], row["loss_tuned"]) for name, row in body["jobs"].items()}
        plots.loss_curves(info.folder / "loss.png", curves, held_out)
        pictures = ["loss.png", *(f"{outcome.name}/state.png" for outcome in outcomes)]
    commands = [command(info.model, lm.tokenizer_name, info.folder / outcome.name) for outcome in outcomes]
    run_report.write(info.folder, body, outcomes, pictures, commands)
    print("\n".join(["", text_table(run_report.table_lines(body)), "", *run_report.remarks(body), body["protocol"]]))
    for outcome in outcomes:
        for sample in outcome.samples[:1]:
            shown = run_report.sample_text(sample)
            print(f"\n{outcome.name}, the same prompt without and with the tuned state:\n{shown}")
    print("\nuse a tuned state:\n" + "\n".join(f"  {line}" for line in commands))
    print(f"\nreport: {info.folder / 'report.md'}" + (f", pictures: {', '.join(pictures)}" if pictures else ""))
    print(f"{run_report.CRITERION}\nreproducibility hash: {body['sha256']}\nRESULT: {body['verdict']}", flush=True)


def protocol(outcomes: Sequence[Outcome], text: str) -> str:
    """Says how the numbers were measured, in a few sentences, of which `text` is that about the loss."""
    scored = [f"{o.name} {o.headline}" for o in outcomes if o.headline]
    if scored:
        text += f" Accuracy as in lm-evaluation-harness 0.4.13, 0 shots, greedy: {', '.join(scored)}."
    return text + " Intervals: 95%, over records (Wilson for accuracies, paired bootstrap for changes)."
