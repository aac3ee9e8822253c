"""From the rows of a finished table to its report, JSON file and pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config import BOOKKEEPING, resolved
from experiments.table import plots, report, summary
from experiments.table.config import TableRunConfig

RATES_FILE = Path(__file__).with_name("rates.jsonl")
"""The search for learning rates that the shipped configs rest on."""


def body_of(config: TableRunConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results with the settings that they come from."""
    return {
        "config": resolved(config, without=BOOKKEEPING),
        "command": f"python -m experiments.run --config {config.name}",
        "protocol": protocol(config),
    } | summary.summarise(config, rows)


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


def draw(body: dict[str, Any], rows: Sequence[dict[str, Any]], folder: Path, prefix: str = "") -> list[str]:
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
    if RATES_FILE.is_file():
        tries = [json.loads(line) for line in RATES_FILE.read_text().splitlines()]
        picture("rates", plots.rates, tries, tasks)
    return done


def write(config: TableRunConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report.md, results.json and pictures in the run's folder."""
    body = body_of(config, rows)
    report.write(config.folder, body, draw(body, rows, config.folder))
    return body
