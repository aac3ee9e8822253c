"""What a run leaves behind: state files with the command that uses them, pictures, samples, the report."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.config.schema import RunConfig, identified
from experiments.data.jobs import Job
from experiments.evaluation.evaluator import Evaluator
from experiments.reporting import plots, run_report
from experiments.reporting.run_report import Measurement, Outcome
from experiments.reporting.tables import text_table
from experiments.training.distributed import is_lead
from experiments.training.metrics_log import MetricsLog
from rwkv7_jax import State, checkpoint
from rwkv7_jax.checkpoint.names import weights_hash
from rwkv7_jax.checkpoint.states import save_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host

if TYPE_CHECKING:
    from experiments.run import Tools

STATE_FILE, PROMPT_FILE, WEIGHTS_FILE = "state.safetensors", "prompt.txt", "model.safetensors"


def save_job(
    both: "tuple[Tools, Tools]",
    job: Job,
    states: tuple[State, State],
    measured: tuple[Measurement, Measurement],
    skipped: int,
) -> Outcome:
    """Write the state file, pictures, samples and, last, the outcome of a job, which marks it as finished.

    The pairs hold what was before and after tuning; changed weights (LoRA) are written beside the state.
    """
    before, tuned = both
    config = before.config
    headline = job.task.headline if job.task else None
    chosen = sample_pairs(config, job)
    prompts = [prompt for prompt, _ in chosen]
    texts = [generate_samples(t.evaluator, state, prompts, config) for t, state in zip(both, states, strict=True)]
    samples = [
        {"prompt": prompt, "wanted": wanted, "vanilla": without, "tuned": with_state}
        for (prompt, wanted), without, with_state in zip(chosen, *texts, strict=True)
    ]
    outcome = Outcome(job.name, headline, *measured, samples, skipped)
    state = host(states[1])
    weights = host(tuned.lm.params) if tuned.lm.params is not before.lm.params else None
    if is_lead():
        write_job(before, outcome, state, weights)
    return outcome


def write_job(tools: "Tools", outcome: Outcome, state: State, weights: Any) -> None:
    """The files of a job. weights: those that the method changed, None if it changed none."""
    config, folder, base_hash = tools.config, tools.config.folder / outcome.name, tools.lm.weights_hash
    if weights is not None:
        checkpoint.save(folder / WEIGHTS_FILE, weights)
        base_hash = weights_hash(weights)
    metadata: dict[str, Any] = {
        "base_model_hash": base_hash,
        "method": config.method.kind,
        "task": outcome.name,
        "config": identified(config),
        "metrics": run_report.summarise(outcome, config.seed),
    }
    save_state(folder / STATE_FILE, state, metadata=metadata)
    (folder / PROMPT_FILE).write_text(outcome.samples[0]["prompt"] if outcome.samples else "")
    if config.report.plots:
        maps = np.asarray(getattr(state.wkv, "s", state.wkv))
        plots.state_maps(folder / "state.png", maps, f"{config.name}: tuned state for {outcome.name}")
    outcome.write(folder / "outcome.json")


def sample_pairs(config: RunConfig, job: Job) -> list[tuple[str, str]]:
    """(prompt, wanted) of the samples: the user's prompt, or the first held-out ones; of plain text, its beginning."""
    if config.report.prompt is not None:
        return [(config.report.prompt, "")]
    pairs = job.held_out[: config.report.samples]
    return [(p.prompt, p.completion) if p.prompt else (p.completion[:100], p.completion[100:300]) for p in pairs]


def generate_samples(evaluator: Evaluator, state: State, prompts: Sequence[str], config: RunConfig) -> list[str]:
    """Greedy continuations of the prompts."""
    return evaluator.answers(state, prompts, (), config.report.sample_tokens)


def command(lm: LanguageModel, folder: Path) -> str:
    """The shell command that continues the saved prompt from the saved state."""
    weights = folder / WEIGHTS_FILE if (folder / WEIGHTS_FILE).is_file() else lm.path
    words = ["rwkv7", "generate", "--model.checkpoint", str(weights), "--state", str(folder / STATE_FILE)]
    words += ["--model.tokenizer", lm.tokenizer_name] if lm.tokenizer_name != "auto" else []
    return shlex.join([*words, "--temperature", "0", "--prompt", "-"]) + f" < {shlex.quote(str(folder / PROMPT_FILE))}"


def finish(config: RunConfig, lm: LanguageModel, outcomes: Sequence[Outcome], log: MetricsLog) -> int:
    """Print and write the report. Returns 0 for PASS, 1 for FAIL."""
    body = run_report.results(identified(config), config.seed, lm.weights_hash, protocol(outcomes), outcomes)
    if is_lead():
        publish(config, lm, outcomes, log, body)
    return 0 if body["verdict"] == "PASS" else 1


def publish(
    config: RunConfig, lm: LanguageModel, outcomes: Sequence[Outcome], log: MetricsLog, body: dict[str, Any]
) -> None:
    """Draw, write and print it."""
    pictures = []
    if config.report.plots:
        curves = {o.name: [(row["step"], row["loss"]) for row in log.rows(o.name)] for o in outcomes}
        held_out = {name: (row["loss_vanilla"], row["loss_tuned"]) for name, row in body["jobs"].items()}
        plots.loss_curves(config.folder / "loss.png", curves, held_out)
        pictures = ["loss.png", *(f"{outcome.name}/state.png" for outcome in outcomes)]
    commands = [command(lm, config.folder / outcome.name) for outcome in outcomes]
    run_report.write(config.folder, body, outcomes, pictures, commands)
    print(f"\n{text_table(run_report.table_lines(body))}\n\n{body['protocol']}")
    for outcome in outcomes:
        for sample in outcome.samples[:1]:
            shown = run_report.sample_text(sample)
            print(f"\n{outcome.name}, the same prompt without and with the tuned state:\n{shown}")
    print("\nuse a tuned state:\n" + "\n".join(f"  {line}" for line in commands))
    print(f"\nreport: {config.folder / 'report.md'}" + (f", pictures: {', '.join(pictures)}" if pictures else ""))
    print(f"{run_report.CRITERION}\nreproducibility hash: {body['sha256']}\nRESULT: {body['verdict']}", flush=True)


def protocol(outcomes: Sequence[Outcome]) -> str:
    """How the numbers were measured, in one sentence or two."""
    scored = [f"{o.name} {o.headline}" for o in outcomes if o.headline]
    text = "Loss: nats per completion token of held-out records, end token included; no token before the prompt."
    if scored:
        text += f" Accuracy as in lm-evaluation-harness 0.4.13, 0 shots, greedy: {', '.join(scored)}."
    return text + " Intervals: 95%, over records (Wilson for accuracies, paired bootstrap for changes)."
