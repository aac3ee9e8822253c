"""From the rows of a finished table to its report, JSON file and pictures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.build import EMBEDDED
from experiments.config.schema import BOOKKEEPING, resolved
from experiments.config.study import TableRunConfig
from experiments.study import plots, question_kinds, report, summary
from experiments.training.run_folder import TRIES_FILE

RATES_FILE = Path(__file__).with_name(TRIES_FILE)
"""The search for learning rates that paper_table's own rest on."""


def tries_of(config: TableRunConfig) -> list[dict[str, Any]]:
    """What the search for the table's learning rates has tried: in the table's folder, or shipped with its config."""
    own = config.folder / TRIES_FILE
    path = own if own.is_file() else RATES_FILE if config.name.startswith("paper_table") else None
    return [json.loads(line) for line in path.read_text().splitlines()] if path else []


def without_folders(config: TableRunConfig) -> TableRunConfig:
    """The settings with files by their names alone: where they lay is nobody's business."""
    model = dataclasses.replace(config.model, checkpoint=_name(config.model.checkpoint))
    data = dataclasses.replace(config.data, dir=config.data.dir and _name(config.data.dir))
    return dataclasses.replace(config, model=model, data=data, larger=config.larger and _name(config.larger))


def _name(path: str) -> str:
    return path if path in EMBEDDED else Path(path).name


def body_of(config: TableRunConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results with the settings that they come from."""
    config = without_folders(config)
    return (
        {
            "config": resolved(config, without=BOOKKEEPING),
            "command": f"python -m experiments.run --config {config.name}",
            "protocol": protocol(config),
        }
        | summary.summarise(config, rows)
        | {"kinds": question_kinds.by_kind(config, rows)}
    )


def protocol(config: TableRunConfig) -> str:
    """How the numbers were measured."""
    limits, data = config.evaluate, config.data
    text = (
        f"Model {config.model.checkpoint}; the {limits.split} split, at most {limits.max_records} records of each "
        f"benchmark, scored as in lm-evaluation-harness 0.4.13, 0 shots, greedy. Every tuned row: {config.tune.steps} "
        f"steps of {data.batch_size} training records, Adam, its own learning rate for each benchmark, chosen on the "
        f"validation split. Seeds {', '.join(map(str, config.seeds))} draw the order of records, random starts and "
        "supports. Intervals: 95%, bootstrap over items and seeds, crossed."
    )
    if config.name.endswith("_fast"):
        text += " **A fast run: fewer records, seeds and steps than `paper_table`; its numbers prove nothing.**"
    return text


def draw(
    body: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    tries: Sequence[dict[str, Any]],
    folder: Path,
    prefix: str = "",
) -> list[str]:
    """All pictures that there is something for; returns their names, which begin with `prefix`."""
    tasks, done = body["tasks"], []

    def picture(name: str, make: Any, *args: Any) -> None:
        make(folder / f"{prefix}{name}.png", *args)
        done.append(f"{prefix}{name}.png")

    picture("accuracy", plots.accuracies, body["accuracy"], tasks)
    if body["scaling"]:
        picture("scaling", plots.scaling, body["scaling"])
    if body["conditions"]:
        picture("condition", plots.conditions, body["conditions"])
    forms = [name for name in ("standard", "dbp", "whitened") if name in body["seconds"]]
    losses = summary.training(rows, forms)
    if len(losses) > 1:
        seconds = {name: sum(body["seconds"][name].values()) / len(tasks) for name in forms}
        picture("speed", plots.speed, losses, seconds)
    looks = [row for row in rows if row["kind"] == "queries"]
    if looks:
        picture("queries", plots.queries, looks)
    if tries:
        picture("rates", plots.rates, tries, tasks)
    return done


def write(config: TableRunConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report.md, results.json and pictures in the run's folder."""
    body = body_of(config, rows)
    report.write(config.folder, body, draw(body, rows, tries_of(config), config.folder))
    return body
