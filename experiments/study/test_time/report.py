"""What follows from the chains: methods at equal numbers of chains, what validation chooses, intervals and tables."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from experiments.reporting.statistics import ItemValues, crossed_bootstrap, paired_difference
from experiments.reporting.tables import markdown_table
from experiments.study.test_time.cells import Cell, Outcome, Study
from state_tuning.test_time_scaling import selection

WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Weights of the votes that are tried on the validation split."""


def vote(one: Outcome, size: int, weight: float | None) -> float:
    """Returns whether the vote over the first `size` chains is right; weight None: the majority."""
    answers: Sequence[Hashable] = one.answers[:size]
    chosen = (
        selection.majority(answers) if weight is None else selection.weighted_vote(answers, _scores(one, size), weight)
    )
    return one.right[chosen]


def best_of(one: Outcome, size: int) -> float:
    """Returns whether the best chain of the first `size` is right."""
    scores = _scores(one, size)
    return one.right[0 if np.isnan(scores).all() else selection.best(scores)]


def _scores(one: Outcome, size: int) -> np.ndarray:
    return np.asarray([np.nan if x is None else x for x in one.scores[:size]], np.float64)


def mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return float(np.mean(values))


class Chosen(NamedTuple):
    """What the validation split chooses."""

    temperatures: dict[str, float]
    """Of sampling, by method without adaptation."""
    plain_weight: float
    rates: dict[str, float]
    """By signal."""
    weights: dict[str, float]
    table: list[list[str]]


def choose(study: Study, cell: Cell) -> Chosen:
    """Returns what is best by accuracy: a temperature for each method without adaptation, rates by the greedy answer
    and the vote after the last step, and the weights of the votes.
    """
    config, count = study.config, study.config.validation
    size = config.samples * config.steps + 1
    table = [["method", "temperature or rate", "own", "vote or best", "weight"]]
    tried = dict[str, dict[float, tuple[float, float]]]()
    for temperature in config.temperatures:
        plain, _ = study.plain(cell, "validation", count, temperature)
        for method, found in {
            "self_consistency": (mean([vote(one, size, None) for one in plain]), 0.0),
            "best_of_n": (mean([best_of(one, size) for one in plain]), 0.0),
            "weighted_vote": _best_vote(plain, size),
        }.items():
            tried.setdefault(method, {})[temperature] = found
            table.append([method, f"{temperature:g}", "", f"{found[0]:.3f}", f"{found[1]:g}"])
    temperatures = {method: max(each, key=lambda t, each=each: each[t][0]) for method, each in tried.items()}
    plain_weight = tried["weighted_vote"][temperatures["weighted_vote"]][1]
    rates, weights = dict[str, float](), dict[str, float]()
    for signal in config.signals:
        by_rate = dict[float, tuple[float, float]]()
        for rate in config.rates:
            last = [row[-1] for row in study.adapted(cell, "validation", count, signal, rate)]
            own, (voted, weight) = mean([one.right[-1] for one in last]), _best_vote(last, size)
            by_rate[rate] = (own + voted, weight)
            table.append([signal, f"{rate:g}", f"{own:.3f}", f"{voted:.3f}", f"{weight:g}"])
        rates[signal] = max(by_rate, key=lambda r: by_rate[r][0])
        weights[signal] = by_rate[rates[signal]][1]
    return Chosen(temperatures, plain_weight, rates, weights, table)


def _best_vote(chains: Sequence[Outcome], size: int) -> tuple[float, float]:
    """Returns the accuracy of the best weight of a vote, and that weight."""
    weight = max(WEIGHTS, key=lambda c: mean([vote(one, size, c) for one in chains]))
    return mean([vote(one, size, weight) for one in chains]), weight


Lines = dict[tuple[str, int], list[list[float]]]
"""(method, N) -> whether each item is right, a row a seed"""


def lines(study: Study, task: str, phrasing: str, chosen: Chosen) -> tuple[Lines, dict[tuple[str, int], list[float]]]:
    """Returns what every method got right on the test split, and the mean (student, teacher) tokens of a problem."""
    found: Lines = {}
    costs: dict[tuple[str, int], list[float]] = {}
    count, samples = study.config.test, study.config.samples
    sizes = [samples * step + 1 for step in range(1, study.config.steps + 1)]

    def add(method: str, n: int, right: list[float], tokens: Sequence[Sequence[tuple[int, int]]], scored: bool) -> None:
        found.setdefault((method, n), []).append(right)
        spent = [mean([sum(one[side] for one in row) for row in tokens]) for side in (0, 1)]
        costs[method, n] = [spent[0], spent[1] if scored else 0.0]

    for seed in study.config.seeds:
        cell = Cell(task, phrasing, seed)
        weighted = partial(vote, weight=chosen.plain_weight)
        for name, pick in (
            ("self_consistency", partial(vote, weight=None)),
            ("best_of_n", best_of),
            ("weighted_vote", weighted),
        ):
            plain, alone = study.plain(cell, "test", count, chosen.temperatures[name])
            for n in sizes:
                tokens = [one.tokens[:n] for one in plain]
                add(name, n, [pick(one, n) for one in plain], tokens, scored=name != "self_consistency")
            if name == "self_consistency":
                found.setdefault(("larger", 1), []).append(alone)
        n = samples * study.config.steps
        beams = study.searched(cell, "test", count, chosen.temperatures["best_of_n"])
        for name, pick in (("search_best", best_of), ("search_vote", weighted)):
            add(name, n, [pick(one, n) for one in beams], [one.tokens for one in beams], scored=True)
        for signal in study.config.signals:
            rows = study.adapted(cell, "test", count, signal, chosen.rates[signal])
            if signal == study.config.signals[0]:
                add("greedy", 1, [row[0].right[-1] for row in rows], [row[0].tokens for row in rows], scored=False)
            for step, n in enumerate(sizes, 1):
                own = [row[step] for row in rows]
                tokens, before = [one.tokens for one in own], [one.tokens[:-1] for one in own]
                add(f"{signal}", n, [one.right[-1] for one in own], tokens, scored=True)
                costs[signal, n][1] = mean([sum(t for _, t in row) for row in before])
                add(f"{signal}_best", n, [best_of(one, n) for one in own], tokens, scored=True)
                add(f"{signal}_vote", n, [vote(one, n, chosen.weights[signal]) for one in own], tokens, scored=True)
    return found, costs


def report(task: str, chosen: Chosen, found: Lines, costs: Mapping[tuple[str, int], list[float]]) -> dict[str, object]:
    """Returns the numbers of one benchmark, with intervals over seeds and items, and paired differences."""
    values = {key: ItemValues(np.asarray(rows, np.float64), np.ones(len(rows[0]))) for key, rows in found.items()}
    points = {f"{m}@{n}": [*crossed_bootstrap([one], 0), *costs.get((m, n), [])] for (m, n), one in values.items()}
    differences = {}
    for (method, n), one in values.items():
        signal = method.removesuffix("_vote").removesuffix("_best")
        if signal in (*chosen.rates, "search"):
            size = min(m for name, m in values if name == "best_of_n" and m >= n)
            others = [("self_consistency", size), ("best_of_n", size), ("weighted_vote", size)]
            for other in (*others, ("larger", 1), ("greedy", 1)):
                gain = crossed_bootstrap([paired_difference(one, values[other])], 0)
                differences[f"{method}@{n} - {other[0]}@{other[1]}"] = list(gain)
    items = {f"{m}@{n}": ["".join(str(int(x)) for x in row) for row in rows] for (m, n), rows in found.items()}
    return {"chosen": chosen._asdict(), "points": points, "differences": differences, "items": items}


def tables(name: str, body: Mapping[str, object]) -> str:
    """Returns the accuracies and differences of one benchmark as Markdown."""
    points, gains = body["points"], body["differences"]
    assert isinstance(points, dict)
    assert isinstance(gains, dict)
    rows = [["method", "N", "accuracy, %", "95 %", "student tokens", "teacher tokens"]]
    for key, (value, low, high, *cost) in points.items():
        method, n = key.split("@")
        shown = [f"{x:.0f}" for x in cost] or ["", ""]
        rows.append([method, n, f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", *shown])
    other = [["difference, points", "value", "95 %, paired"]]
    other += [[key, f"{100 * v:+.1f}", f"{100 * a:+.1f} to {100 * b:+.1f}"] for key, (v, a, b) in gains.items()]
    return f"## {name}\n\n{markdown_table(rows, 'lrrlrr')}\n\n{markdown_table(other, 'lrl')}\n"
