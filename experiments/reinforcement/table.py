"""Joins finished runs with rewards, seeds of the same settings together, to one table and one JSON file.

    python -m experiments.reinforcement.table runs/grpo-0 runs/grpo-1 runs/es-0 --json results.json

The JSON file has the reward of every greedy and sampled answer to every held-out prompt, so that intervals can be
computed again. Intervals: 95%, prompts and seeds drawn again independently (crossed bootstrap).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config.overrides import UsageError
from experiments.reinforcement.passes import rights
from experiments.reinforcement.report import MEASURES, Outcome
from experiments.reporting.json_text import json_text
from experiments.reporting.statistics import Interval, ItemValues, crossed_bootstrap, paired_difference
from experiments.reporting.tables import markdown_table
from experiments.training import run_folder
from experiments.training.continuing import OUTCOME_FILE
from rwkv7_jax.checkpoint.files import write_text

SIDES = ("before", "after", "change")
BASE = ("seed", "name", "output", "resume", "overwrite", "system", "mesh", "report")
"""Settings in which the seeds of one line of the table may differ; so may `tune.init`."""


class Run(NamedTuple):
    """One finished job of a run."""

    folder: Path
    settings: dict[str, object]
    outcome: Outcome

    @property
    def method(self) -> dict[str, object]:
        """Its settings of the method."""
        method = self.settings["method"]
        assert isinstance(method, dict)
        return method

    @property
    def shared(self) -> dict[str, object]:
        """The settings that the seeds of a line have in common."""
        kept = {key: value for key, value in self.settings.items() if key not in BASE}
        tune = kept.get("tune")
        kept["tune"] = {k: v for k, v in tune.items() if k != "init"} if isinstance(tune, dict) else tune
        return kept

    @property
    def line(self) -> tuple[str, str, str]:
        """What makes runs seeds of one line of the table: task, kind, and all settings but seed and start."""
        return self.outcome.name, str(self.method["kind"]), json_text(self.shared, sort_keys=True)


def load(folders: Sequence[Path]) -> list[Run]:
    """Reads the finished jobs of run folders.

    Raises:
      UsageError, ValueError, OSError: in one line: a folder without a run with rewards, or a damaged one.
    """
    found = []
    for folder in folders:
        settings = run_folder.read(folder).get("config")
        if not isinstance(settings, dict) or "reward" not in settings.get("method", {}):
            raise UsageError(f"{folder} is not a run with rewards")
        outcomes = sorted(folder.glob(f"*/{OUTCOME_FILE}"))
        if not outcomes:
            raise UsageError(f"{folder} has no finished job; run its command again")
        found += [Run(folder, settings, Outcome.read(path)) for path in outcomes]
    return found


def intervals(runs: Sequence[Run]) -> dict[str, dict[str, Interval]]:
    """Computes each measure before, after and its change over the seeds of one line."""
    found: dict[str, dict[str, Interval]] = {side: {} for side in SIDES}
    for key, _ in MEASURES:
        before, after = (_values(runs, side, key) for side in ("before", "after"))
        for side, values in zip(SIDES, (before, after, paired_difference(after, before)), strict=True):
            found[side][key] = crossed_bootstrap([values], 0)
    return found


def _values(runs: Sequence[Run], side: str, key: str) -> ItemValues:
    rows = []
    for run in runs:
        right, k = run.method["right"], run.method["passes"]
        assert isinstance(right, float | int)
        assert isinstance(k, int)
        rows.append(rights(getattr(run.outcome, side), right, k)[key])
    return ItemValues(np.asarray(rows, np.float64), np.ones(len(rows[0])))


def table(runs: Sequence[Run]) -> str:
    """Returns the table as Markdown, a line for each task, kind and setting."""
    lines = [["task", "method", "seeds", "steps", *(title.format(k="k") for _, title in MEASURES[1:])]]
    for of_line in grouped(runs):
        found, tune = intervals(of_line), of_line[0].settings["tune"]
        assert isinstance(tune, dict)
        cells = [_cell(*(found[side][key] for side in SIDES)) for key, _ in MEASURES[1:]]
        task, kind, _ = of_line[0].line
        lines.append([task, kind, str(len(of_line)), str(tune["steps"]), *cells])
    return markdown_table(lines)


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the runs of each line of the table, in order of their first."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        found.setdefault(run.line, []).append(run)
    return list(found.values())


def _cell(before: Interval, after: Interval, change: Interval) -> str:
    mean, low, high = (100 * value for value in change)
    return f"{100 * before.mean:.1f} -> {100 * after.mean:.1f}, {mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def joined(runs: Sequence[Run]) -> dict[str, object]:
    """Returns all numbers, plain enough for JSON."""
    lines = []
    for of_line in grouped(runs):
        first = of_line[0]
        found = intervals(of_line)
        seeds = [
            {
                "seed": run.settings["seed"],
                "before": {"greedy": run.outcome.before.greedy, "sampled": run.outcome.before.sampled},
                "after": {"greedy": run.outcome.after.greedy, "sampled": run.outcome.after.sampled},
            }
            for run in of_line
        ]
        means = {side: {key: list(value) for key, value in found[side].items()} for side in SIDES}
        named = {"task": first.outcome.name, "kind": first.method["kind"], "settings": first.shared}
        lines.append({**named, "means": means, "seeds": seeds})
    return {"lines": lines}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reinforcement.table", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    try:
        runs = load(args.folders)
        text = table(runs)
        if args.json:
            write_text(args.json, json_text(joined(runs)) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
