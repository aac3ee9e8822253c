"""From the outcomes of a run's jobs to what people read: table, samples, verdict, hash; as Markdown and JSON too."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.schema import RunConfig, digest, identified
from experiments.reporting.statistics import Interval, bootstrap, wilson
from experiments.reporting.tables import markdown_table

CRITERION = (
    "PASS: the held-out completion loss falls in every task, and with benchmarks "
    "the interval of the mean accuracy gain is above 0."
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One model, one initial state, held-out records."""

    nll: list[float]
    """Summed completion NLL of each record in nats."""
    tokens: list[float]
    """Completion tokens of each record."""
    scores: dict[str, list[float]]
    """Metric -> 0 or 1 for each benchmark item; empty where there is no benchmark."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a finished job leaves, plain enough for JSON."""

    name: str
    headline: str | None
    """The metric in the table; None where there is no benchmark."""
    vanilla: Measurement
    tuned: Measurement
    samples: list[dict[str, str]]
    """{"prompt", "wanted", "vanilla", "tuned"} each."""
    skipped: int
    """Updates that the non-finite guard did not apply."""

    @staticmethod
    def read(path: Path) -> "Outcome":
        """The outcome written by `write`."""
        plain = json.loads(path.read_text())
        plain |= {key: Measurement(**plain[key]) for key in ("vanilla", "tuned")}
        return Outcome(**plain)

    def write(self, path: Path) -> None:
        """Write as JSON, floats exactly."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self)))
        part.replace(path)


def summarise(outcome: Outcome, seed: int) -> dict[str, Any]:
    """Means and 95% intervals of one job: token-weighted losses and gains (paired bootstrap), accuracies (Wilson)."""
    before, after = outcome.vanilla, outcome.tuned
    tokens = np.asarray(before.tokens)
    change = (np.asarray(after.nll) - np.asarray(before.nll)) / tokens
    row: dict[str, Any] = {
        "records": len(before.nll),
        "loss_vanilla": sum(before.nll) / sum(before.tokens),
        "loss_tuned": sum(after.nll) / sum(after.tokens),
        "loss_change": bootstrap([change.tolist()], seed, [before.tokens]),
    }
    for metric, right in before.scores.items():
        row.setdefault("vanilla", {})[metric] = wilson(round(sum(right)), len(right))
        row.setdefault("tuned", {})[metric] = wilson(round(sum(after.scores[metric])), len(right))
    if outcome.headline:
        row["headline"] = outcome.headline
        row["gain"] = bootstrap([gains(outcome)], seed)
    return row


def gains(outcome: Outcome) -> list[float]:
    """Tuned minus vanilla score of each item by the headline metric."""
    assert outcome.headline is not None
    before, after = outcome.vanilla.scores[outcome.headline], outcome.tuned.scores[outcome.headline]
    return [b - a for a, b in zip(before, after, strict=True)]


def results(config: RunConfig, base_hash: str, protocol: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything of a run that does not depend on clocks or folders, its verdict and its hash."""
    jobs = {outcome.name: summarise(outcome, config.seed) for outcome in outcomes}
    body: dict[str, Any] = {
        "config": identified(config),
        "base_model_sha256": base_hash,
        "protocol": protocol,
        "jobs": jobs,
        "samples": {outcome.name: outcome.samples for outcome in outcomes},
        "skipped_updates": {outcome.name: outcome.skipped for outcome in outcomes},
    }
    scored = [gains(outcome) for outcome in outcomes if outcome.headline]
    body["mean_gain"] = bootstrap(scored, config.seed) if scored else None
    body["verdict"] = verdict(jobs, body["mean_gain"])
    return body | {"sha256": digest(body)}


def verdict(jobs: dict[str, dict[str, Any]], mean_gain: Interval | None) -> str:
    """'PASS' or 'FAIL (reason)', by `CRITERION`."""
    worse = [name for name, row in jobs.items() if not row["loss_tuned"] < row["loss_vanilla"]]
    if worse:
        return f"FAIL (held-out loss did not fall: {', '.join(worse)})"
    if mean_gain is not None and not mean_gain.low > 0:
        return f"FAIL (the mean gain in accuracy, {_points(mean_gain)} points, is not clearly above 0)"
    return "PASS"


def _points(x: Interval) -> str:
    return f"{100 * x.mean:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def _percent(x: Interval) -> str:
    return f"{100 * x.mean:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"


def table_rows(body: dict[str, Any]) -> list[list[str]]:
    """The header and one row a job, and the mean over benchmarks."""
    scored = body["mean_gain"] is not None
    rows = [["task", "records", "loss vanilla", "loss tuned", "change [95%]"]]
    rows[0] += ["acc. % vanilla [95%]", "acc. % tuned [95%]", "gain, points [95%]"] if scored else []
    for name, row in body["jobs"].items():
        change = row["loss_change"]
        cells = [name, str(row["records"]), f"{row['loss_vanilla']:.3f}", f"{row['loss_tuned']:.3f}"]
        cells.append(f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
        if scored:
            before, after = (row[state][row["headline"]] for state in ("vanilla", "tuned"))
            cells += [_percent(before), _percent(after), _points(row["gain"])]
        rows.append(cells)
    if scored and len(body["jobs"]) > 1:
        rows.append(["mean gain", "", "", "", "", "", "", _points(body["mean_gain"])])
    return rows


def sample_text(sample: dict[str, str], width: int = 400) -> str:
    """One prompt continued without and with the tuned state; long prompts lose their start, long answers their end."""
    parts = {key: value if len(value) <= width else value[:width] + "..." for key, value in sample.items()}
    if len(sample["prompt"]) > width:
        parts["prompt"] = "..." + sample["prompt"][-width:]
    names = {"prompt": "prompt ", "wanted": "wanted ", "vanilla": "vanilla", "tuned": "tuned  "}
    shown = ((names[key], parts[key].strip("\n").replace("\n", "\n          | ")) for key in names if parts.get(key))
    return "\n".join(f"  {name} | {text}" for name, text in shown)


def markdown(
    body: dict[str, Any], outcomes: Sequence[Outcome], pictures: Sequence[str], commands: Sequence[str]
) -> str:
    """The report as Markdown, pictures by relative name."""
    title = f"# {body['config']['name']}: vanilla against a tuned state"
    lines = [title, "", markdown_table(table_rows(body)), "", body["protocol"], ""]
    lines += [f"![{name}]({name})" for name in pictures] + [""]
    for outcome in outcomes:
        lines += [f"## {outcome.name}", ""]
        lines += [f"```text\n{sample_text(sample, 2000)}\n```\n" for sample in outcome.samples]
    lines += ["## Use the tuned states", "", "```sh", *commands, "```", "", CRITERION, ""]
    return "\n".join([*lines, f"RESULT: {body['verdict']}", f"Reproducibility hash: {body['sha256']}", ""])


def write(
    folder: Path, body: dict[str, Any], outcomes: Sequence[Outcome], pictures: Sequence[str], commands: Sequence[str]
) -> None:
    """Write report.md and results.json."""
    (folder / "report.md").write_text(markdown(body, outcomes, pictures, commands))
    (folder / "results.json").write_text(json.dumps(body, indent=1) + "\n")
