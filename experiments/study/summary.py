"""From rows of cells to numbers with intervals: what the report, the JSON file and the pictures show."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.config.study import LARGER, TableRunConfig
from experiments.reporting.accuracy_curve import curve
from experiments.reporting.statistics import Sample, crossed, difference
from experiments.study.labels import FOUR, in_order
from experiments.training.metrics_log import Interval

Row = dict[str, Any]
COMPARED = ("upscale", "dbp", "whitened", "upscale_dbp", "dbp_seconds", "whitened_seconds", "state_offset", "lora")
Samples = dict[str, dict[str, Sample]]
"""row -> benchmark -> sample"""


def samples(rows: Sequence[Row], measure: str) -> Samples:
    """Of `accuracy` (right answers of each item) or `loss` (nats of each item, parts are tokens)."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if "right" in row or (row["kind"] == "scaled" and measure == "accuracy"):
            found.setdefault(row["row"], {}).setdefault(row["task"], []).append(row)
    return {
        name: {task: _sample(sorted(cells, key=lambda row: row["seed"]), measure) for task, cells in by_task.items()}
        for name, by_task in found.items()
    }


def _sample(cells: Sequence[Row], measure: str) -> Sample:
    if cells[0]["kind"] == "scaled":
        values = np.asarray([[adapted(problem) for problem in cell["problems"]] for cell in cells], np.float64)
        return Sample(values, np.ones(values.shape[1]))
    values = np.asarray([cell["right" if measure == "accuracy" else "nll"] for cell in cells], np.float64)
    ones = np.ones(values.shape[1])
    return Sample(values, ones if measure == "accuracy" else np.asarray(cells[0]["tokens"], np.float64))


def adapted(problem: Row) -> float:
    """Whether the answer after the last step of adaptation is right."""
    lines = [line for line in problem["lines"] if line["method"] == "adapted"]
    return max(lines, key=lambda line: line["n"])["correct"]


def with_mean(by_task: dict[str, Sample], tasks: Sequence[str], seed: int) -> dict[str, Interval]:
    """The interval of each benchmark, and `mean` over all of them where there is every one."""
    found = {task: crossed([by_task[task]], seed) for task in tasks if task in by_task}
    if len(found) == len(tasks) and len(tasks) > 1:
        found["mean"] = crossed([by_task[task] for task in tasks], seed)
    return found


def against(all_samples: Samples, other: str, tasks: Sequence[str], seed: int) -> dict[str, dict[str, Interval]]:
    """row -> benchmark -> paired difference from the row `other`; rows of the other model are left out."""
    base, found = all_samples.get(other, {}), {}
    for name in in_order(list(all_samples)):
        if name == other or name.startswith(LARGER) != other.startswith(LARGER):
            continue
        pairs = {task: (one, base[task]) for task, one in all_samples[name].items() if task in base}
        pairs = {task: pair for task, pair in pairs.items() if _comparable(*pair)}
        found[name] = with_mean({task: difference(*pair) for task, pair in pairs.items()}, tasks, seed)
    return found


def _comparable(a: Sample, b: Sample) -> bool:
    return len({len(a.values), len(b.values), 1}) <= 2


def scaling(rows: Sequence[Row], tasks: Iterable[str], seed: int) -> dict[str, Any]:
    """benchmark -> {"points": curve over the problems of all seeds, "differences": adapted minus each control}."""
    found = {}
    for task in tasks:
        cells = sorted((r for r in rows if r["kind"] == "scaled" and r["task"] == task), key=lambda r: r["seed"])
        if cells:
            points = curve([problem for cell in cells for problem in cell["problems"]])
            for point in points:
                key = point["method"], point["n"]
                point |= crossed([_line_sample(cells, key)], seed)._asdict()
            found[task] = {"points": points, "differences": _against_controls(cells, points, seed)}
    return found


def _line_sample(cells: Sequence[Row], key: tuple[str, int]) -> Sample:
    values = [
        [next(x["correct"] for x in p["lines"] if (x["method"], x["n"]) == key) for p in cell["problems"]]
        for cell in cells
    ]
    return Sample(np.asarray(values, np.float64), np.ones(len(values[0])))


def _against_controls(cells: Sequence[Row], points: Sequence[Row], seed: int) -> list[Row]:
    """Adapted minus self-consistency and best-of-N at the same N, and minus the greedy answer before."""
    have = {(point["method"], point["n"]) for point in points}
    found = []
    for n in sorted(n for method, n in have if method == "adapted"):
        for other in (("self_consistency", n), ("best_of_n", n), ("greedy", 1)):
            if other in have:
                gain = difference(_line_sample(cells, ("adapted", n)), _line_sample(cells, other))
                found.append({"n": n, "against": other[0], **crossed([gain], seed)._asdict()})
    return found


def conditions(rows: Sequence[Row]) -> dict[str, list[tuple[int, float, float, float]]]:
    """row -> [(step, mean, least, largest over cells)] of log10 of the condition number, mean over layers."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for step, layers in row.get("conditions", []):
            found.setdefault(row["row"], {}).setdefault(step, []).append(float(np.mean(layers)))
    return {
        name: [(step, float(np.mean(x)), min(x), max(x)) for step, x in sorted(by_step.items())]
        for name, by_step in found.items()
    }


def summarise(config: TableRunConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that the report says, plain enough for JSON."""
    tasks, seed = list(config.data.tasks), config.seed
    measured = {measure: samples(rows, measure) for measure in ("accuracy", "loss")}
    body: dict[str, Any] = {"tasks": tasks, "seeds": list(config.seeds)}
    for measure, found in measured.items():
        body[measure] = {name: with_mean(found[name], tasks, seed) for name in in_order(list(found))}
        body[f"{measure}_against"] = {
            other: against(found, other, tasks, seed) for other in ("vanilla", "standard", "larger_vanilla")
        }
    body["items"] = {
        name: {task: list(sample.values.shape) for task, sample in by_task.items()}
        for name, by_task in measured["accuracy"].items()
    }
    body["scaling"] = scaling(rows, config.scaling.tasks, seed)
    body["conditions"] = conditions(rows)
    body["seconds"] = next((row["seconds"] for row in rows if row["kind"] == "timing"), {})
    body["steps"] = {row["row"]: row["steps"] for row in rows if row["kind"] == "tuned"}
    body["rates"] = {name: row.rates for name, row in config.rows.items()}
    body["half_lives"] = {
        row["task"]: {name: half_lives(norms["q"]) for name, norms in row["norms"].items()}
        for row in rows
        if row["kind"] == "queries"
    }
    body["spectra"] = next((row["spectra"] for row in rows if row["kind"] == "spectra"), {})
    seen = [row for row in rows if row["kind"] == "observer"]
    body["observer"] = {name: seen[0][name] for name in ("plain", "corrected")} if seen else {}
    body["claims"] = claims(body)
    return body


def claims(body: dict[str, Any]) -> list[str]:
    """The questions that the table is for, each answered by its interval."""
    found = []
    for name in FOUR:
        gains, falls = (body[f"{measure}_against"]["vanilla"].get(name, {}) for measure in ("accuracy", "loss"))
        above = [task for task in body["tasks"] if task in gains and gains[task].low > 0]
        lower = [task for task in body["tasks"] if task in falls and falls[task].high < 0]
        if gains:
            found.append(f"{name} above vanilla in accuracy, beyond the interval: {_listed(above, body['tasks'])}")
            found.append(f"{name} below vanilla in held-out loss, beyond the interval: {_listed(lower, body['tasks'])}")
    for name in COMPARED:
        for measure in ("accuracy", "loss"):
            x = body[f"{measure}_against"]["standard"].get(name, {}).get("mean")
            if x:
                found.append(f"{name} against standard, {measure}, mean over benchmarks: {verdict(x, measure)}")
    for task, one in body["scaling"].items():
        last = max((d["n"] for d in one["differences"]), default=0)
        for d in (d for d in one["differences"] if d["n"] == last):
            text = verdict(Interval(d["mean"], d["low"], d["high"]), "accuracy")
            found.append(f"test-time scaling on {task} against {d['against']}, N = {last}: {text}")
    return found


def _listed(some: Sequence[str], every: Sequence[str]) -> str:
    return "on all" if len(some) == len(every) else f"on {', '.join(some) or 'none'} (of {', '.join(every)})"


def verdict(x: Interval, measure: str) -> str:
    """better, worse or undecided, with the numbers in points of accuracy or in nats."""
    sign, scale, unit = (1, 100, "points") if measure == "accuracy" else (-1, 1, "nats")
    low, high = sorted((sign * x.low, sign * x.high))
    word = "better" if low > 0 else "worse" if high < 0 else "undecided"
    digits = 1 if measure == "accuracy" else 3
    numbers = [f"{scale * value:+.{digits}f}" for value in x]
    return f"{word} ({numbers[0]} [{numbers[1]}, {numbers[2]}] {unit})"


def tuned_rows(rows: Sequence[Row], name: str) -> list[Row]:
    """The tuned cells of a row."""
    return [row for row in rows if row["kind"] == "tuned" and row["row"] == name]


def half_lives(lines: Sequence[Sequence[float]]) -> list[int]:
    """For each layer the number of tokens after which |q_t| stays below half of |q_1|; all, if it never does."""
    return [max(t for t, value in enumerate(line, 1) if value >= line[0] / 2) for line in lines]


def training(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[float]]:
    """row -> training loss by step, mean over the benchmarks and seeds that all of them have: the same batches."""
    by_row = {name: {(row["task"], row["seed"]): row["train"] for row in tuned_rows(rows, name)} for name in names}
    both = sorted(set.intersection(*(set(cells) for cells in by_row.values()))) if by_row else []
    if not both:
        return {}
    return {name: np.mean([cells[key] for key in both], axis=0).tolist() for name, cells in by_row.items()}
