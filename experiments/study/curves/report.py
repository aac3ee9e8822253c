"""A study of curves as Markdown and JSON. Every value by item and seed is in the JSON, so that others can recompute."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config.schema import Json
from experiments.reporting.tables import markdown_table
from experiments.study.curves import summary
from experiments.study.curves.plan import VANILLA, Place
from experiments.study.curves.summary import Points
from experiments.study.report import nats, percent

BEGIN, END = "<!-- curves -->", "<!-- /curves -->"
CHAIN = "chain_right"
STANDARD = "standard"


class Study(NamedTuple):
    """What a report is made of."""

    config: dict[str, Json]
    command: str
    protocol: str
    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    headlines: dict[str, str]
    """Benchmark -> the metric that its accuracy is."""
    found: Points
    seconds: dict[str, dict[str, float]]
    """Row -> benchmark -> seconds a step."""
    missing: list[str]
    """Cells of the plan that are not computed."""


def markdown(study: Study, pictures: Sequence[str]) -> str:
    """Returns all sections."""
    text = [study.protocol, "", f"    {study.command}", "", *missing_section(study)]
    for task in study.tasks:
        text += task_section(study, task)
    text += [*time_section(study), *against_section(study), *elsewhere_section(study), *rates_section(study)]
    return "\n".join([*text, *(f"![{name}]({name})" for name in pictures), ""])


def missing_section(study: Study) -> list[str]:
    """Returns how much of the plan is there, and what is not."""
    if not study.missing:
        return []
    return [f"Not computed yet: {'; '.join(study.missing)}.", ""]


def task_section(study: Study, task: str) -> list[str]:
    """Returns accuracy, the share of right chains and loss of a benchmark by row and budget."""
    head, metrics = study.headlines[task], _metrics(study, task)
    text = [f"### {task}", ""]
    titles = {head: f"Accuracy ({head}), %", "loss": "Held-out loss, nats a completion token"}
    titles |= {one: f"{one}, %" for one in metrics if one != head}
    if CHAIN in titles:
        titles[CHAIN] = "Chains that are right, whatever they end in, %"
    for metric in [head, *(one for one in metrics if one != head), "loss"]:
        lines = _grid(study, task, metric)
        if len(lines) > 1:
            text += [titles[metric], "", markdown_table(lines), ""]
    return text if len(text) > 2 else []


def _grid(study: Study, task: str, metric: str) -> list[list[str]]:
    show = nats if metric == "loss" else percent
    lines = [["row", *(f"{budget} steps" for budget in study.budgets)]]
    base = study.found.get(Place(VANILLA, task, 0))
    if base:
        lines.append([VANILLA, show(summary.interval(base, metric)), *[""] * (len(study.budgets) - 1)])
    for row in study.rows:
        places = [Place(row, task, budget) for budget in study.budgets]
        if any(place in study.found for place in places):
            lines.append([row, *(_cell(study, place, metric) for place in places)])
    return lines


def _cell(study: Study, place: Place, metric: str) -> str:
    cells = study.found.get(place)
    if not cells:
        return ""
    show = nats if metric == "loss" else percent
    seeds = "" if len(cells) == len(study.seeds) else f" ({len(cells)} seed{'s' * (len(cells) > 1)})"
    return show(summary.interval(cells, metric)) + seeds


def _metrics(study: Study, task: str) -> list[str]:
    base = study.found.get(Place(VANILLA, task, 0))
    return list(base[0]["scores"]) if base else [study.headlines[task]]


def times(study: Study, task: str) -> tuple[float, dict[str, summary.Reached | None]]:
    """Returns the target accuracy of a benchmark, and when each row reaches it."""
    seconds = {row: by_task[task] for row, by_task in study.seconds.items() if task in by_task}
    return summary.reached(study.found, study.rows, task, study.headlines[task], seconds)


def time_section(study: Study) -> list[str]:
    """Returns the time to 90% of the best."""
    by_task = {task: times(study, task) for task in study.tasks}
    by_task = {task: one for task, one in by_task.items() if one[1] and one[0] > 0}
    if not by_task:
        return []
    lines = [["row", *(f"{task}, to {100 * target:.1f}%" for task, (target, _) in by_task.items())]]
    there = [row for row in study.rows if any(row in found for _, found in by_task.values())]
    lines += [[row, *(_time(found, row) for _, found in by_task.values())] for row in there]
    text = (
        f"Steps (and seconds, without compilation) to {100 * summary.SHARE:.0f}% of the best mean accuracy that any "
        "row has on the benchmark; between budgets by interpolation in log(1 + steps). Every budget is its own run."
    )
    return ["### Time to accuracy", "", text, "", markdown_table(lines), ""]


def _time(found: Mapping[str, summary.Reached | None], row: str) -> str:
    if row not in found:
        return ""
    one = found[row]
    if one is None:
        return "not reached"
    return f"{one.steps:.0f}" + ("" if one.seconds is None else f" ({one.seconds:.1f} s)")


def against_section(study: Study) -> list[str]:
    """Returns the paired differences from standard state tuning at equal budgets."""
    text = []
    for task in study.tasks:
        mine = {place: cells for place, cells in study.found.items() if place.task == task}
        found = summary.against(mine, STANDARD, study.headlines[task])
        lines = [["row", *(f"{budget} steps" for budget in study.budgets)]]
        for row in study.rows:
            places = [Place(row, task, budget) for budget in study.budgets]
            if any(place in found for place in places):
                lines.append([row, *(percent(found[one], True) if one in found else "" for one in places)])
        if len(lines) > 1:
            text += [f"{task}:", "", markdown_table(lines), ""]
    if not text:
        return []
    how = (
        "Accuracy minus that of `standard` at the same budget, points, paired over records and seeds; bold: without 0."
    )
    return ["### Against standard state tuning", "", how, "", *text]


def elsewhere_section(study: Study) -> list[str]:
    """Returns what states change on other benchmarks and on plain text."""
    changes = summary.elsewhere(study.found, study.headlines)
    if not changes:
        return []
    tasks = [task for task in study.tasks if any(task in found for found in changes.values())]
    lines = [["tuned on", "row", "steps", *tasks, "plain text, nats"]]
    for place, found in changes.items():
        cells = [percent(found[task], True) if task in found else "" for task in tasks]
        text = nats(found["text"], True) if "text" in found else ""
        lines.append([place.task, place.row, str(place.budget), *cells, text])
    how = "Change from the untuned model where the state was not tuned: accuracy in points, loss in nats a token."
    return ["### What a state breaks elsewhere", "", how, "", markdown_table(lines), ""]


def rates_section(study: Study) -> list[str]:
    """Returns the learning rates that were chosen."""
    lines = [["benchmark", "row", *(f"{budget} steps" for budget in study.budgets)]]
    for task in study.tasks:
        for row in study.rows:
            cells = [study.found.get(Place(row, task, budget)) for budget in study.budgets]
            if any(cells):
                lines.append([task, row, *(f"{one[0]['rate']:g}" if one else "" for one in cells)])
    if len(lines) == 1:
        return []
    return ["### Learning rates chosen on the validation split", "", markdown_table(lines), ""]


def as_json(study: Study) -> dict[str, object]:
    """Returns every number, and every value by item and seed, plain enough for JSON."""
    numbers = []
    bases = {base: summary.against(study.found, base, "loss") for base in (VANILLA, STANDARD)}
    for place, cells in study.found.items():
        metrics = [*_metrics(study, place.task), "loss"]
        one: dict[str, object] = {
            "row": place.row, "task": place.task, "budget": place.budget, "steps": cells[0]["steps"],
            "rate": cells[0]["rate"], "seeds": [cell["seed"] for cell in cells],
            **{metric: list(summary.interval(cells, metric)) for metric in metrics},
        }  # fmt: skip
        for base, found in bases.items():
            if place in found:
                head = study.headlines[place.task]
                accuracy = summary.against({k: study.found[k] for k in _pair(study, place, base)}, base, head)
                one[f"minus_{base}"] = {head: list(accuracy[place]), "loss": list(found[place])}
        numbers.append(one)
    changes = summary.elsewhere(study.found, study.headlines)
    return {
        "config": study.config,
        "command": study.command,
        "protocol": study.protocol,
        "headlines": study.headlines,
        "points": numbers,
        "time_to_90_percent": {task: _times_json(study, task) for task in study.tasks},
        "elsewhere": [
            {**place._asdict(), "change": {name: list(x) for name, x in found.items()}}
            for place, found in changes.items()
        ],
        "seconds": study.seconds,
        "missing": study.missing,
        "values": [_values(place, cell) for place, cells in study.found.items() for cell in cells],
        "tokens": {
            task: study.found[Place(VANILLA, task, 0)][0]["tokens"]
            for task in study.tasks
            if Place(VANILLA, task, 0) in study.found
        },
    }


def _pair(study: Study, place: Place, base: str) -> list[Place]:
    other = Place(base, place.task, 0 if base == VANILLA else place.budget)
    return [place, other]


def _times_json(study: Study, task: str) -> dict[str, object]:
    target, found = times(study, task)
    return {"accuracy": target, "rows": {row: None if one is None else one._asdict() for row, one in found.items()}}


def _values(place: Place, cell: Mapping[str, Any]) -> dict[str, object]:
    """The values of one cell, with those of other benchmarks and of plain text where they are measured."""
    found: dict[str, object] = {**place._asdict(), "seed": cell["seed"], "scores": _digits(cell), "nll": cell["nll"]}
    if "elsewhere" in cell:
        found["elsewhere"] = {task: _digits(other) for task, other in cell["elsewhere"].items()}
    if "text" in cell:
        found["text"] = cell["text"]
    return found


def _digits(cell: Mapping[str, Any]) -> dict[str, str]:
    """Metric -> its values of 0 and 1 as a text, item by item."""
    return {name: "".join(str(int(one)) for one in found) for name, found in cell["scores"].items()}
