"""From the records of a finished table to its report, JSON file and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from experiments.build import EMBEDDED
from experiments.config.schema import DataConfig, EvaluateConfig, Json, identified
from experiments.study import plots, report, store, summary
from experiments.study.accuracy_by_kind import accuracy_by_kind
from experiments.study.plan import Plan
from experiments.study.records import CellRecord, RateRecord, TableResults
from experiments.training.run_folder import TRIES_FILE

RATES_FILE = Path(__file__).with_name(TRIES_FILE)
"""The search for learning rates that paper_table's own rest on."""


def tries_of(folder: Path, name: str) -> list[RateRecord]:
    """Returns what the search for a table's learning rates has tried: in its folder, or shipped with its config."""
    own = folder / TRIES_FILE
    path = own if own.is_file() else RATES_FILE if name.startswith("paper_table") else None
    return cast(list[RateRecord], store.read(path)) if path else []


def without_folders(settings: dict[str, Json]) -> dict[str, Json]:
    """Returns the settings with files by their names alone."""
    model, data, larger = settings["model"], settings["data"], settings["larger"]
    assert isinstance(model, dict)
    assert isinstance(data, dict)
    model = {**model, "checkpoint": file_name(str(model["checkpoint"]))}
    data = {**data, "dir": data["dir"] and file_name(str(data["dir"]))}
    return {**settings, "model": model, "data": data, "larger": larger and file_name(str(larger))}


def file_name(path: str) -> str:
    """Returns the name of an embedded model or of a file without its folders."""
    return path if path in EMBEDDED else Path(path).name


def results(plan: Plan, records: Sequence[CellRecord]) -> TableResults:
    """Computes the results of a table, with the settings that they come from."""
    config = plan.config
    data, limits = config.data, config.evaluate
    rates = {name: learned.rates for name, learned in config.rows.items()}
    embedded = () if data.dir or data.train else data.names
    return {
        "config": without_folders(identified(config)),
        "command": f"python -m experiments.run --config {config.name}",
        "protocol": protocol(config.name, config.model.checkpoint, limits, data, config.tune.steps, config.seeds),
        **summary.summarise(records, data.names, config.seeds, config.scaling.names, rates),
        "values": summary.values(records),
        "kinds": accuracy_by_kind(records, embedded, limits.split, limits.max_records),
    }


def protocol(
    name: str, checkpoint: str, limits: EvaluateConfig, data: DataConfig, steps: int, seeds: Sequence[int]
) -> str:
    """Returns how the numbers were measured."""
    text = (
        f"Model {file_name(checkpoint)}; the {limits.split} split, at most {limits.max_records} records of each "
        f"benchmark, scored as in lm-evaluation-harness 0.4.13, 0 shots, greedy. Every tuned row: {steps} "
        f"steps of {data.batch_size} training records, Adam, its own learning rate for each benchmark, chosen on the "
        f"validation split. Seeds {', '.join(map(str, seeds))} draw the order of records, random starts and "
        "supports. Intervals: 95%, by t over items crossed with seeds."
    )
    if name.endswith("_fast"):
        text += " **A fast run: fewer records, seeds and steps than `paper_table`; its numbers prove nothing.**"
    return text


def draw(
    body: TableResults, records: Sequence[CellRecord], tries: Sequence[RateRecord], folder: Path, prefix: str = ""
) -> list[str]:
    """Draws all pictures that there is something for; returns their names, which begin with `prefix`."""
    tasks, done = body["tasks"], list[str]()

    def file(name: str) -> Path:
        done.append(f"{prefix}{name}.png")
        return folder / done[-1]

    plots.accuracies(file("accuracy"), body["accuracy"], tasks)
    if body["scaling"]:
        plots.scaling(file("scaling"), body["scaling"])
    if body["conditions"]:
        plots.conditions(file("condition"), body["conditions"])
    forms = [name for name in ("standard", "dbp", "whitened") if name in body["seconds"]]
    losses = summary.training_losses(records, forms)
    if len(losses) > 1:
        seconds = {name: sum(body["seconds"][name].values()) / len(tasks) for name in forms}
        plots.speed(file("speed"), losses, seconds)
    queries = [record for record in records if record["kind"] == "queries"]
    if queries:
        plots.queries(file("queries"), queries)
    if tries:
        plots.rates(file("rates"), tries, tasks)
    return done


def write(plan: Plan, records: Sequence[CellRecord]) -> TableResults:
    """Writes report.md, results.json and pictures into the run's folder."""
    body, folder = results(plan, records), plan.config.folder
    report.write(folder, body, draw(body, records, tries_of(folder, plan.config.name), folder))
    return body
