"""The numbers of an evaluation: means with standard errors by part and group, and paired comparisons."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.evaluation.suite import Bench
from experiments.reporting.result_store import Sample
from experiments.reporting.statistics import FEW, Interval, Mean, bootstrap, mcnemar, mean, pooled
from experiments.tasks.subjects import GROUP_OF, GROUPS


class Paired(NamedTuple):
    """A state against the first one on the same records."""

    gain: Interval
    """Mean difference with its 95% bootstrap interval."""
    better: int
    worse: int
    p: float
    """Exact two-sided McNemar test of better against worse (McNemar 1947)."""


def by_part(bench: Bench, samples: Sequence[Sample], state: str, metric: str) -> dict[str, Mean]:
    """Returns each part's mean, the groups' of MMLU and, with several parts, that of all, in the table's order."""
    values: dict[str, list[float]] = {part.name: [] for part in bench.parts}
    for sample in samples:
        if sample["state"] == state:
            values[sample["part"]].append(sample["scores"][metric])
    parts = {name: mean(found) for name, found in values.items()}
    if len(parts) == 1:
        return {bench.name: parts[bench.parts[0].name]}
    means: dict[str, Mean] = {}
    if all(name in GROUP_OF for name in parts):
        for group, subjects in GROUPS.items():
            mine = [name for name in subjects if name in parts]
            if mine:
                means[group] = pooled([parts[name] for name in mine])
                means |= {f"  {name}": parts[name] for name in mine}
    else:
        means = dict(parts)
    return means | {bench.name: pooled(list(parts.values()))}


def compare(samples: Sequence[Sample], first: str, other: str, metric: str, seed: int = 0) -> Paired:
    """Compares `other` with `first`, record by record."""
    scores: dict[str, dict[tuple[str, int], float]] = {first: {}, other: {}}
    for sample in samples:
        if sample["state"] in scores:
            scores[sample["state"]][sample["part"], sample["index"]] = sample["scores"][metric]
    gains = [scores[other][key] - value for key, value in scores[first].items()]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return Paired(bootstrap([gains], seed), better, worse, mcnemar(better, worse))


def summary(bench: Bench, samples: Sequence[Sample], states: Sequence[str]) -> dict[str, object]:
    """Returns every number of one benchmark, plain enough for JSON."""
    means = {
        metric: {state: by_part(bench, samples, state, metric) for state in states} for metric in bench.task.metrics
    }
    head = bench.task.headline
    paired = {state: compare(samples, states[0], state, head) for state in states[1:]}
    return {
        "protocol": bench.protocol,
        "headline": head,
        "means": {
            metric: {state: {name.strip(): m._asdict() for name, m in of.items()} for state, of in found.items()}
            for metric, found in means.items()
        },
        "paired": {
            state: {"gain": p.gain._asdict(), "better": p.better, "worse": p.worse, "mcnemar_p": p.p}
            for state, p in paired.items()
        },
    }


def table_rows(bench: Bench, samples: Sequence[Sample], states: Sequence[str]) -> list[list[str]]:
    """Returns the header, then a line for each part, group and total; columns for each metric and state."""
    columns = [(metric, state) for metric in bench.task.metrics for state in states]
    head = [metric if len(states) == 1 else f"{metric}, {state}" for metric, state in columns]
    found = [by_part(bench, samples, state, metric) for metric, state in columns]
    lines = [[bench.name, "records", *(f"% {name}" for name in head)]]
    for name, first in found[0].items():
        lines.append([name, str(first.count), *(_percent(column[name]) for column in found)])
    return lines


def comparison_lines(bench: Bench, samples: Sequence[Sample], states: Sequence[str]) -> list[str]:
    """Returns one line for each state after the first."""
    lines = []
    for state in states[1:]:
        x = compare(samples, states[0], state, bench.task.headline)
        points = f"{100 * x.gain.mean:+.2f} points [{100 * x.gain.low:+.2f}, {100 * x.gain.high:+.2f}]"
        change = f"{x.better} answers better, {x.worse} worse, McNemar p = {x.p:.3g}"
        count = sum(sample["state"] == state for sample in samples)
        few = f"; {count} records are too few for an interval to say much" if count < FEW else ""
        lines.append(f"{bench.name} {bench.task.headline}, {state} against {states[0]}: {points} (95%), {change}{few}")
    return lines


def _percent(x: Mean) -> str:
    return f"{100 * x.value:.2f} ± {100 * x.error:.2f}" if not math.isnan(x.error) else f"{100 * x.value:.2f}"
