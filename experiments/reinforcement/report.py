"""The report of a run with rewards: pass rates before and after, reward curves, verdict and hash."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from experiments.config.schema import Json, digest
from experiments.reinforcement.passes import Passes, PassSummary, change, summarise
from experiments.reporting import json_file, plots
from experiments.reporting.json_text import json_text
from experiments.reporting.run_report import are_samples, sample_text
from experiments.reporting.statistics import Interval, few_records
from experiments.reporting.tables import markdown_table
from experiments.training.metrics_log import Row
from rwkv7_jax.checkpoint.files import write_text
from state_tuning.reinforcement.rewards import LARGEST

CRITERION = "Criterion of PASS: the interval of the mean reward's change on held-out prompts is above 0 in every task."
MEASURES = (("reward", "mean reward"), ("greedy", "greedy % right"), ("pass_1", "pass@1 %"), ("pass_k", "pass@{k} %"))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a finished job leaves, plain enough for JSON."""

    name: str
    before: Passes
    after: Passes
    samples: list[dict[str, str]]
    """{"prompt", "wanted", "vanilla", "tuned"} each: greedy answers from the start and from the tuned state."""
    skipped: int
    """Updates that the non-finite guard did not apply."""

    @staticmethod
    def read(path: Path) -> "Outcome":
        """Reads the outcome that `write` wrote.

        Raises:
          ValueError: in one line with the path, what is wrong with the file.
          OSError: it cannot be read.
        """
        plain = json_file.read(path)
        try:
            sides = {name: Passes(**plain.pop(name)) for name in ("before", "after")}  # pyright: ignore[reportCallIssue]
            return _checked(Outcome(**plain, **sides))  # pyright: ignore[reportArgumentType]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged (it is not an outcome of a run with rewards)") from None

    def write(self, path: Path) -> None:
        """Writes as JSON, floats exactly."""
        json_file.write(path, dataclasses.asdict(self), indent=None)


def _checked(outcome: Outcome) -> Outcome:
    """The outcome, if its parts have the types and sizes that reports rely on.

    Raises:
      ValueError: they have not.
    """
    sizes = set()
    for side in (outcome.before, outcome.after):
        sampled = np.asarray(side.sampled, np.float64)
        greedy = np.asarray(side.greedy, np.float64)
        if sampled.ndim != 2 or greedy.shape != sampled.shape[:1] or not sampled.size:
            raise ValueError("sizes")
        if not (np.abs(sampled) <= LARGEST).all() or not (np.abs(greedy) <= LARGEST).all():
            raise ValueError("rewards")
        if not all(isinstance(text, str) for text in side.texts):
            raise ValueError("texts")
        sizes.add(sampled.shape)
    texts = are_samples(outcome.samples)
    if len(sizes) != 1 or not texts or not isinstance(outcome.name, str) or not isinstance(outcome.skipped, int):
        raise ValueError("not an outcome")
    return outcome


class Counting(NamedTuple):
    """How answers are counted."""

    reward: str
    right: float
    """Reward from which an answer counts as right."""
    k: int
    seed: int
    """Of the bootstrap."""


class JobResult(TypedDict):
    """One job."""

    prompts: int
    before: PassSummary
    after: PassSummary
    change: PassSummary


class _Unsigned(TypedDict):
    config: dict[str, Json]
    base_model_sha256: str
    protocol: str
    jobs: dict[str, JobResult]
    samples: dict[str, list[dict[str, str]]]
    skipped_updates: dict[str, int]
    verdict: str


class RewardResults(_Unsigned):
    """results.json."""

    sha256: str
    """Of all else."""


def results(
    settings: dict[str, Json], base_hash: str, counting: Counting, outcomes: Sequence[Outcome]
) -> RewardResults:
    """Returns everything of a run that does not depend on clocks or folders, its verdict and its hash.

    Args:
      settings: all that can change a result.
      base_hash: SHA-256 of the weights.
      counting: how answers are counted.
      outcomes: of the finished jobs.
    """
    right, k, seed = counting.right, counting.k, counting.seed
    jobs = {
        one.name: JobResult(
            prompts=len(one.before.greedy),
            before=summarise(one.before, right, k, seed),
            after=summarise(one.after, right, k, seed),
            change=change(one.before, one.after, right, k, seed),
        )
        for one in outcomes
    }
    body: _Unsigned = {
        "config": settings,
        "base_model_sha256": base_hash,
        "protocol": protocol(counting),
        "jobs": jobs,
        "samples": {one.name: one.samples for one in outcomes},
        "skipped_updates": {one.name: one.skipped for one in outcomes},
        "verdict": verdict(jobs),
    }
    return {**body, "sha256": digest(body)}


def protocol(counting: Counting) -> str:
    """Says how the numbers were measured."""
    return (
        f"Reward {counting.reward} of held-out prompts; an answer is right from a reward of {counting.right:g}. "
        f"Before: the state that the run starts from. pass@1 and pass@{counting.k} are estimated from the same "
        f"{counting.k} samples of each prompt, drawn with the same random numbers before and after. Intervals: 95%, "
        "bootstrap over prompts (paired for changes)."
    )


def verdict(jobs: dict[str, JobResult]) -> str:
    """Returns 'PASS' or 'FAIL (reason)', by `CRITERION`."""
    worse = [name for name, job in jobs.items() if not job["change"]["reward"].low > 0]
    return f"FAIL (the mean reward is not clearly higher: {', '.join(worse)})" if worse else "PASS"


def table_lines(body: RewardResults, k: int) -> list[list[str]]:
    """Returns the header and a line for each task and measure."""
    lines = [["task", "prompts", "measure", "before [95%]", "after [95%]", "change [95%]"]]
    for name, job in body["jobs"].items():
        for key, title in MEASURES:
            size = 1.0 if key == "reward" else 100.0
            before, after, gain = (
                _cell(job[side][key], size, side == "change") for side in ("before", "after", "change")
            )
            lines.append([name, str(job["prompts"]), title.format(k=k), before, after, gain])
    return lines


def remarks(body: RewardResults) -> list[str]:
    """Returns what a reader of the table has to know: tasks with very few prompts."""
    return few_records({name: job["prompts"] for name, job in body["jobs"].items()}, "prompts")


def _cell(x: Interval, size: float, signed: bool) -> str:
    places, sign = (3 if size == 1 else 1), "+" if signed else ""
    mean, low, high = (f"{size * value:{sign}.{places}f}" for value in x)
    return f"{mean} [{low}, {high}]"


def write(folder: Path, body: RewardResults, k: int, pictures: Sequence[str], commands: Sequence[str]) -> None:
    """Writes report.md and results.json."""
    lines = [f"# {body['config']['name']}: learning from rewards", "", markdown_table(table_lines(body, k)), ""]
    lines += [*remarks(body), body["protocol"], "", *(f"![{name}]({name})" for name in pictures), ""]
    for name, samples in body["samples"].items():
        lines += [f"## {name}", "", *(f"```text\n{sample_text(sample, 2000)}\n```\n" for sample in samples)]
    lines += ["## Use the tuned states", "", "```sh", *commands, "```", "", CRITERION, ""]
    text = "\n".join([*lines, f"RESULT: {body['verdict']}", f"Reproducibility hash: {body['sha256']}", ""])
    write_text(folder / "report.md", text)
    write_text(folder / "results.json", json_text(body, indent=1) + "\n")


def reward_curves(path: Path, curves: dict[str, Sequence[Row]], levels: dict[str, tuple[float, float]]) -> None:
    """Draws the reward by step, a panel a job.

    Args:
      path: of the PNG.
      curves: job -> its rows of metrics.
      levels: job -> mean reward of greedy answers to held-out prompts (before, after).
    """
    plt = plots.pyplot()
    columns = len(curves)
    figure, axes = plt.subplots(1, columns, figsize=(5.2 * columns, 3.4), squeeze=False, layout="constrained")
    for axis, (name, rows) in zip(axes.flat, curves.items(), strict=True):
        steps, values = [row["step"] for row in rows], [row.get("reward", np.nan) for row in rows]
        axis.plot(steps, values, color="C0", alpha=0.25, linewidth=1)
        if values:
            axis.plot(steps, plots.smooth(values), color="C0", linewidth=1.8, label="samples (smoothed)")
        held_out = [(row["step"], row["validation_reward"]) for row in rows if "validation_reward" in row]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), color="C3", marker="o", label="held-out, greedy, first ones")
        before, after = levels[name]
        axis.axhline(before, color="C1", linestyle="--", label=f"held-out, before: {before:.3f}")
        axis.axhline(after, color="C2", linestyle="-.", label=f"held-out, after: {after:.3f}")
        axis.set(title=name, xlabel="step", ylabel="mean reward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    plots.save_figure(path, figure)
