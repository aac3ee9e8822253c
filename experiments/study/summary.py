"""From the records of cells to numbers with intervals: what the report, the JSON file and the pictures show."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.config.study import LARGER
from experiments.reporting.accuracy_curve import CurvePoint, Gain, Problem, curve
from experiments.reporting.crossed import crossed_interval
from experiments.reporting.statistics import (
    Interval,
    ItemValues,
    can_be_paired,
    paired_difference,
)
from experiments.study.labels import FOUR, in_order
from experiments.study.records import (
    ByMethod,
    ByTask,
    CellRecord,
    ItemRecord,
    Measure,
    MeasuredRecord,
    ScaledRecord,
    ScalingResult,
    Summary,
    TunedRecord,
    differences,
)

COMPARED = ("upscale", "dbp", "whitened", "upscale_dbp", "dbp_seconds", "whitened_seconds", "state_offset", "lora")
Scored = MeasuredRecord | TunedRecord | ScaledRecord
Samples = dict[str, dict[str, ItemValues]]
"""Method -> benchmark -> sample."""


def samples(records: Sequence[CellRecord], measure: Measure) -> Samples:
    """Collects `accuracy` (right answers of each item) or `loss` (nats of each item, parts are tokens)."""
    found: dict[str, dict[str, list[Scored]]] = {}
    for record in records:
        if record["kind"] == "measured" or record["kind"] == "tuned" or record["kind"] == "scaled":
            if record["kind"] == "scaled" and measure == "loss":
                continue
            found.setdefault(record["row"], {}).setdefault(record["task"], []).append(record)
    return {
        name: {task: _sample(sorted(cells, key=lambda one: one["seed"]), measure) for task, cells in by_task.items()}
        for name, by_task in found.items()
    }


def _sample(cells: Sequence[Scored], measure: Measure) -> ItemValues:
    scaled = [cell for cell in cells if cell["kind"] == "scaled"]
    if scaled:
        values = np.asarray([[adapted_is_right(one) for one in cell["problems"]] for cell in scaled], np.float64)
        return ItemValues(values, np.ones(values.shape[1]))
    plain = [cell for cell in cells if cell["kind"] != "scaled"]
    if measure == "accuracy":
        values = np.asarray([cell["right"] for cell in plain], np.float64)
        return ItemValues(values, np.ones(values.shape[1]))
    values = np.asarray([cell["nll"] for cell in plain], np.float64)
    return ItemValues(values, np.asarray(plain[0]["tokens"], np.float64))


def adapted_is_right(problem: Problem) -> float:
    """Returns whether the answer after the last step of adaptation is right."""
    adapted = [one for one in problem["lines"] if one["method"] == "adapted"]
    return max(adapted, key=lambda one: one["n"])["correct"]


def with_mean(by_task: Mapping[str, ItemValues], tasks: Sequence[str]) -> ByTask:
    """Returns the interval of each benchmark, and `mean` over all of them where there is every one."""
    found = {task: crossed_interval([by_task[task]]) for task in tasks if task in by_task}
    if len(found) == len(tasks) and len(tasks) > 1:
        found["mean"] = crossed_interval([by_task[task] for task in tasks])
    return found


def bounded(by_task: ByTask) -> ByTask:
    """Returns intervals of accuracies within 0 and 1."""
    return {task: Interval(x.mean, max(0.0, x.low), min(1.0, x.high)) for task, x in by_task.items()}


def against(all_samples: Samples, other: str, tasks: Sequence[str]) -> ByMethod:
    """Returns the paired differences from the method `other`; methods on the other model are left out."""
    base, found = all_samples.get(other, {}), {}
    for name in in_order(all_samples):
        if name == other or name.startswith(LARGER) != other.startswith(LARGER):
            continue
        pairs = {task: (one, base[task]) for task, one in all_samples[name].items() if task in base}
        pairs = {task: pair for task, pair in pairs.items() if can_be_paired(*pair)}
        found[name] = with_mean({task: paired_difference(*pair) for task, pair in pairs.items()}, tasks)
    return found


def scaling(records: Sequence[CellRecord], tasks: Iterable[str]) -> dict[str, ScalingResult]:
    """Computes, for each benchmark, the curve over the problems of all seeds, and adapted minus each control."""
    found: dict[str, ScalingResult] = {}
    for task in tasks:
        cells = [one for one in records if one["kind"] == "scaled" and one["task"] == task]
        cells = sorted(cells, key=lambda one: one["seed"])
        if cells:
            points = curve([problem for cell in cells for problem in cell["problems"]])
            for point in points:
                x = crossed_interval([_outcomes(cells, (point["method"], point["n"]))])
                point["mean"], point["low"], point["high"] = x.mean, max(0.0, x.low), min(1.0, x.high)
            found[task] = {"points": points, "differences": _against_controls(cells, points)}
    return found


def _outcomes(cells: Sequence[ScaledRecord], key: tuple[str, int]) -> ItemValues:
    values = [
        [next(x["correct"] for x in p["lines"] if (x["method"], x["n"]) == key) for p in cell["problems"]]
        for cell in cells
    ]
    return ItemValues(np.asarray(values, np.float64), np.ones(len(values[0])))


def _against_controls(cells: Sequence[ScaledRecord], points: Sequence[CurvePoint]) -> list[Gain]:
    """Adapted minus self-consistency and best-of-N at the same N, and minus the greedy answer before."""
    have = {(point["method"], point["n"]) for point in points}
    found: list[Gain] = []
    for n in sorted(n for method, n in have if method == "adapted"):
        for other in (("self_consistency", n), ("best_of_n", n), ("greedy", 1)):
            if other in have:
                gain = paired_difference(_outcomes(cells, ("adapted", n)), _outcomes(cells, other))
                mean, low, high = crossed_interval([gain])
                found.append({"n": n, "against": other[0], "mean": mean, "low": low, "high": high})
    return found


def conditions(records: Sequence[CellRecord]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Returns method -> [(step, mean, least, largest over cells)] of log10 of the condition number."""
    found: dict[str, dict[int, list[float]]] = {}
    for record in records:
        for step, layers in record["conditions"] if record["kind"] == "tuned" else []:
            found.setdefault(record["row"], {}).setdefault(step, []).append(float(np.mean(layers)))
    return {
        name: [(step, float(np.mean(x)), min(x), max(x)) for step, x in sorted(by_step.items())]
        for name, by_step in found.items()
    }


def summarise(
    records: Sequence[CellRecord],
    tasks: Sequence[str],
    seeds: Sequence[int],
    scaled_tasks: Sequence[str],
    rates: dict[str, dict[str, float]],
) -> Summary:
    """Computes everything that the report says, plain enough for JSON.

    Args:
      records: of all cells.
      tasks: benchmarks in order.
      seeds: of the table.
      scaled_tasks: benchmarks with test-time scaling.
      rates: method -> benchmark -> learning rate.
    """
    accuracy, loss = samples(records, "accuracy"), samples(records, "loss")
    bases = ("vanilla", "standard", "larger_vanilla")
    timing = [one for one in records if one["kind"] == "timing"]
    queries = [one for one in records if one["kind"] == "queries"]
    spectra = [one for one in records if one["kind"] == "spectra"]
    observer = [one for one in records if one["kind"] == "observer"]
    body: Summary = {
        "tasks": list(tasks),
        "seeds": list(seeds),
        "accuracy": {name: bounded(with_mean(accuracy[name], tasks)) for name in in_order(accuracy)},
        "accuracy_against": {other: against(accuracy, other, tasks) for other in bases},
        "loss": {name: with_mean(loss[name], tasks) for name in in_order(loss)},
        "loss_against": {other: against(loss, other, tasks) for other in bases},
        "items": {
            name: {task: list(sample.values.shape) for task, sample in by_task.items()}
            for name, by_task in accuracy.items()
        },
        "scaling": scaling(records, scaled_tasks),
        "conditions": conditions(records),
        "seconds": timing[0]["seconds"] if timing else {},
        "steps": {one["row"]: one["steps"] for one in records if one["kind"] == "tuned"},
        "rates": rates,
        "half_lives": {
            one["task"]: {name: half_lives(norms["q"]) for name, norms in one["norms"].items()} for one in queries
        },
        "spectra": spectra[0]["spectra"] if spectra else {},
        "observer": {"plain": observer[0]["plain"], "corrected": observer[0]["corrected"]} if observer else {},
        "claims": [],
    }
    return {**body, "claims": claims(body)}


def claims(body: Summary) -> list[str]:
    """Returns the questions that the table is for, each answered by its interval."""
    found = []
    for name in FOUR:
        gains, falls = (differences(body, measure)["vanilla"].get(name, {}) for measure in ("accuracy", "loss"))
        above = [task for task in body["tasks"] if task in gains and gains[task].low > 0]
        lower = [task for task in body["tasks"] if task in falls and falls[task].high < 0]
        if gains:
            found.append(f"{name} above vanilla in accuracy, beyond the interval: {_listed(above, body['tasks'])}")
            found.append(f"{name} below vanilla in held-out loss, beyond the interval: {_listed(lower, body['tasks'])}")
    for name in COMPARED:
        for measure in ("accuracy", "loss"):
            x = differences(body, measure)["standard"].get(name, {}).get("mean")
            if x:
                found.append(f"{name} against standard, {measure}, mean over benchmarks: {verdict(x, measure)}")
    for task, one in body["scaling"].items():
        last = max((gain["n"] for gain in one["differences"]), default=0)
        for gain in (gain for gain in one["differences"] if gain["n"] == last):
            text = verdict(Interval(gain["mean"], gain["low"], gain["high"]), "accuracy")
            found.append(f"test-time scaling on {task} against {gain['against']}, N = {last}: {text}")
    return found


def _listed(some: Sequence[str], every: Sequence[str]) -> str:
    return "on all" if len(some) == len(every) else f"on {', '.join(some) or 'none'} (of {', '.join(every)})"


def verdict(x: Interval, measure: Measure) -> str:
    """Returns better, worse or undecided, with the numbers in points of accuracy or in nats."""
    sign, scale, unit = (1, 100, "points") if measure == "accuracy" else (-1, 1, "nats")
    low, high = sorted((sign * x.low, sign * x.high))
    word = "better" if low > 0 else "worse" if high < 0 else "undecided"
    digits = 1 if measure == "accuracy" else 3
    numbers = [f"{scale * value:+.{digits}f}" for value in x]
    return f"{word} ({numbers[0]} [{numbers[1]}, {numbers[2]}] {unit})"


def values(records: Sequence[CellRecord]) -> list[ItemRecord]:
    """Returns the values by item of every method, benchmark and seed, from which paired intervals can be recomputed."""
    return [
        {
            "row": one["row"],
            "task": one["task"],
            "seed": one["seed"],
            "right": "".join(f"{value:g}" for value in one["right"]),
            "nll": [round(value, 4) for value in one["nll"]],
            "tokens": one["tokens"],
        }
        for one in records
        if one["kind"] == "measured" or one["kind"] == "tuned"
    ]


def tuned_records(records: Sequence[CellRecord], method: str) -> list[TunedRecord]:
    """Returns the tuned cells of a method."""
    return [one for one in records if one["kind"] == "tuned" and one["row"] == method]


def half_lives(norms: Sequence[Sequence[float]]) -> list[int]:
    """Returns the number of tokens by layer after which |q_t| stays below half of |q_1|; all, if it never does."""
    return [max(t for t, value in enumerate(layer, 1) if value >= layer[0] / 2) for layer in norms]


def training_losses(records: Sequence[CellRecord], methods: Sequence[str]) -> dict[str, list[float]]:
    """Returns method -> training loss by step, mean over the benchmarks and seeds that all of them have: the same
    batches."""
    by_method = {
        name: {(one["task"], one["seed"]): one["train"] for one in tuned_records(records, name)} for name in methods
    }
    both = sorted(set.intersection(*(set(cells) for cells in by_method.values()))) if by_method else []
    if not both:
        return {}
    return {name: np.mean([cells[key] for key in both], axis=0).tolist() for name, cells in by_method.items()}
