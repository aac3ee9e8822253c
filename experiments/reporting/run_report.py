"""The report of a run: table, samples, verdict and hash of its jobs' outcomes, as text, Markdown and JSON."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from experiments.config.schema import Json, digest
from experiments.reporting import json_file
from experiments.reporting.json_text import json_text
from experiments.reporting.statistics import Interval, bootstrap, few_records, wilson
from experiments.reporting.tables import markdown_table
from rwkv7_jax.checkpoint.files import write_text

ABSURD = 1000.0
"""Times the size of the model's own states, from which on a tuned state does not count."""
LARGEST = 1e15
"""Of nats and tokens of a record: all sums with them are numbers."""
CRITERION = (
    "Criterion of PASS: the held-out completion loss falls in every task, and with benchmarks "
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
    scale: float | None = None
    """How many times larger the tuned state is than the model's own, where it is out of scale."""

    @staticmethod
    def read(path: Path) -> "Outcome":
        """Reads the outcome that `write` wrote.

        Raises:
          ValueError: in one line with the path, what is wrong with the file.
          OSError: it cannot be read.
        """
        plain: dict[str, Any] = json_file.read(path)
        try:
            plain |= {key: Measurement(**plain[key]) for key in ("vanilla", "tuned")}
            return _checked(Outcome(**plain))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged (it is not an outcome)") from None

    def write(self, path: Path) -> None:
        """Writes as JSON, floats exactly."""
        json_file.write(path, dataclasses.asdict(self), indent=None)


def _checked(outcome: Outcome) -> Outcome:
    """The outcome, if its parts have the types and sizes that reports rely on.

    Raises:
      ValueError: they have not.
    """
    before, after = outcome.vanilla, outcome.tuned
    numbers = all(
        _all_within(side.nll, -LARGEST, LARGEST)
        and _all_within(side.tokens, 1, LARGEST)
        and all(_all_within(column, 0, 1) for column in side.scores.values())
        for side in (before, after)
    )
    records = {len(column) for side in (before, after) for column in (side.nll, side.tokens)}
    scored = before.scores.keys() == after.scores.keys() and (outcome.headline in before.scores or not outcome.headline)
    items = {len(column) for side in (before, after) for column in side.scores.values()}
    texts = are_samples(outcome.samples)
    plain = isinstance(outcome.name, str) and isinstance(outcome.skipped, int)
    if not (numbers and len(records) == 1 and scored and len(items) <= 1 and texts and plain):
        raise ValueError("not an outcome")
    return outcome


def are_samples(found: Sequence[Mapping[str, object]]) -> bool:
    """Returns whether samples that were read from a file are texts, each with its prompt.

    Raises:
      KeyError, AttributeError, TypeError: they have another form.
    """
    return all(
        isinstance(sample["prompt"], str) and all(isinstance(text, str) for text in sample.values()) for sample in found
    )


def _all_within(column: Sequence[object], low: float, high: float) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high for value in column
    )


class JobSummary(TypedDict):
    """Means and intervals of one job; accuracies where there is a benchmark."""

    records: int
    loss_vanilla: float
    loss_tuned: float
    loss_change: Interval
    vanilla: NotRequired[dict[str, Interval]]
    """Metric -> accuracy."""
    tuned: NotRequired[dict[str, Interval]]
    headline: NotRequired[str]
    gain: NotRequired[Interval]


class _Unsigned(TypedDict):
    config: dict[str, Json]
    base_model_sha256: str
    protocol: str
    jobs: dict[str, JobSummary]
    samples: dict[str, list[dict[str, str]]]
    skipped_updates: dict[str, int]
    mean_gain: Interval | None
    verdict: str


class RunResults(_Unsigned):
    """results.json."""

    sha256: str
    """Of all else."""


def summarise(outcome: Outcome, seed: int) -> JobSummary:
    """Computes means and 95% intervals of one job.

    Losses and gains are weighted by tokens (paired bootstrap), accuracies have Wilson intervals. A loss that is not
    finite leaves no interval.
    """
    before, after = outcome.vanilla, outcome.tuned
    tokens = np.asarray(before.tokens)
    change = (np.asarray(after.nll) - np.asarray(before.nll)) / tokens
    job: JobSummary = {
        "records": len(before.nll),
        "loss_vanilla": sum(before.nll) / sum(before.tokens),
        "loss_tuned": sum(after.nll) / sum(after.tokens),
        "loss_change": bootstrap([change.tolist()], seed, [before.tokens])
        if np.isfinite(change).all()
        else Interval(math.nan, math.nan, math.nan),
    }
    if before.scores:
        job["vanilla"] = {metric: wilson(round(sum(right)), len(right)) for metric, right in before.scores.items()}
        job["tuned"] = {metric: wilson(round(sum(after.scores[metric])), len(x)) for metric, x in before.scores.items()}
    if outcome.headline:
        job["headline"] = outcome.headline
        job["gain"] = bootstrap([gains(outcome)], seed)
    return job


def gains(outcome: Outcome) -> list[float]:
    """Returns the tuned minus vanilla score of each item by the headline metric."""
    assert outcome.headline is not None
    before, after = outcome.vanilla.scores[outcome.headline], outcome.tuned.scores[outcome.headline]
    return [b - a for a, b in zip(before, after, strict=True)]


def results(
    settings: dict[str, Json], seed: int, base_hash: str, protocol: str, outcomes: Sequence[Outcome]
) -> RunResults:
    """Returns everything of a run that does not depend on clocks or folders, its verdict and its hash.

    Args:
      settings: all that can change a result.
      seed: of the bootstrap.
      base_hash: SHA-256 of the weights.
      protocol: how the numbers were measured.
      outcomes: of the finished jobs.
    """
    jobs = {outcome.name: summarise(outcome, seed) for outcome in outcomes}
    scored = [gains(outcome) for outcome in outcomes if outcome.headline]
    mean_gain = bootstrap(scored, seed) if scored else None
    body: _Unsigned = {
        "config": settings,
        "base_model_sha256": base_hash,
        "protocol": protocol,
        "jobs": jobs,
        "samples": {outcome.name: outcome.samples for outcome in outcomes},
        "skipped_updates": {outcome.name: outcome.skipped for outcome in outcomes},
        "mean_gain": mean_gain,
        "verdict": verdict(jobs, mean_gain, [outcome.name for outcome in outcomes if (outcome.scale or 0.0) > ABSURD]),
    }
    return {**body, "sha256": digest(body)}


def verdict(jobs: dict[str, JobSummary], mean_gain: Interval | None, absurd: Sequence[str] = ()) -> str:
    """Returns 'PASS' or 'FAIL (reason)', by `CRITERION`; `absurd` names jobs whose state is far out of scale."""
    if absurd:
        return f"FAIL (the state is out of scale, lower tune.learning_rate: {', '.join(absurd)})"
    worse = [name for name, job in jobs.items() if not job["loss_tuned"] < job["loss_vanilla"]]
    if worse:
        return f"FAIL (held-out loss did not fall: {', '.join(worse)})"
    if mean_gain is not None and not mean_gain.low > 0:
        return f"FAIL (the mean gain in accuracy, {_points(mean_gain)} points, is not clearly above 0)"
    return "PASS"


def _points(x: Interval) -> str:
    return f"{100 * x.mean:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def _percent(x: Interval) -> str:
    return f"{100 * x.mean:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"


def table_lines(body: RunResults) -> list[list[str]]:
    """Returns the header, one line a job, and the mean over benchmarks."""
    mean_gain = body["mean_gain"]
    lines = [["task", "records", "loss vanilla", "loss tuned", "change [95%]"]]
    lines[0] += [] if mean_gain is None else ["acc. % vanilla [95%]", "acc. % tuned [95%]", "gain, points [95%]"]
    for name, job in body["jobs"].items():
        change = job["loss_change"]
        cells = [name, str(job["records"]), f"{job['loss_vanilla']:.3f}", f"{job['loss_tuned']:.3f}"]
        cells.append(f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
        if mean_gain is not None:
            cells += _accuracy_cells(job)
        lines.append(cells)
    if mean_gain is not None and len(body["jobs"]) > 1:
        lines.append(["mean gain", "", "", "", "", "", "", _points(mean_gain)])
    return lines


def remarks(body: RunResults) -> list[str]:
    """Returns what a reader of the table has to know: tasks with very few records."""
    return few_records({name: job["records"] for name, job in body["jobs"].items()})


def _accuracy_cells(job: JobSummary) -> list[str]:
    if not ("headline" in job and "vanilla" in job and "tuned" in job and "gain" in job):
        raise ValueError("a run scores all of its jobs by benchmarks, or none")
    metric = job["headline"]
    return [_percent(job["vanilla"][metric]), _percent(job["tuned"][metric]), _points(job["gain"])]


def sample_text(sample: dict[str, str], width: int = 400) -> str:
    """Returns one prompt continued without and with the tuned state; the start of long prompts and the end of long
    answers are cut off, and an empty answer is said to be one."""
    parts = {key: value if len(value) <= width else value[:width] + "..." for key, value in sample.items()}
    if len(sample["prompt"]) > width:
        parts["prompt"] = "..." + sample["prompt"][-width:]
    parts |= {key: "(nothing)" for key in ("vanilla", "tuned") if not sample.get(key, "").strip()}
    names = {"prompt": "prompt ", "wanted": "wanted ", "vanilla": "vanilla", "tuned": "tuned  "}
    shown = ((names[key], parts[key].strip("\n").replace("\n", "\n          | ")) for key in names if parts.get(key))
    return "\n".join(f"  {name} | {text}" for name, text in shown)


def markdown(body: RunResults, outcomes: Sequence[Outcome], pictures: Sequence[str], commands: Sequence[str]) -> str:
    """Returns the report as Markdown, pictures by relative name."""
    title = f"# {body['config']['name']}: vanilla against a tuned state"
    lines = [title, "", markdown_table(table_lines(body)), "", *remarks(body), body["protocol"], ""]
    lines += [f"![{name}]({name})" for name in pictures] + [""]
    for outcome in outcomes:
        lines += [f"## {outcome.name}", ""]
        lines += [f"```text\n{sample_text(sample, 2000)}\n```\n" for sample in outcome.samples]
    lines += ["## Use the tuned states", "", "```sh", *commands, "```", "", CRITERION, ""]
    return "\n".join([*lines, f"RESULT: {body['verdict']}", f"Reproducibility hash: {body['sha256']}", ""])


def write(
    folder: Path, body: RunResults, outcomes: Sequence[Outcome], pictures: Sequence[str], commands: Sequence[str]
) -> None:
    """Writes report.md and results.json."""
    write_text(folder / "report.md", markdown(body, outcomes, pictures, commands))
    write_text(folder / "results.json", json_text(body, indent=1) + "\n")
