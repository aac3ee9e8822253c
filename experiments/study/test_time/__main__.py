"""Test-time scaling on the pocket benchmarks: every method at equal numbers of chains, with paired intervals.

    python -m experiments.study.test_time --tasks mmlu=took,gsm8k=gold --output runs/test_time

For each benchmark and seed a student and the larger model are tuned on the same chains. On the validation split the
adaptation's rate and divergence, the temperature of each method without adaptation and the weights of the votes are
chosen, with the first seed; then the test split is answered. What is chosen, and each item's result, is kept in
cells.jsonl, so that the same command goes on.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence

from experiments.config.cli import exit_status
from experiments.config.loading import parse
from experiments.reporting.json_text import json_text
from experiments.study.test_time import plots
from experiments.study.test_time.cells import Cell, Study
from experiments.study.test_time.report import choose, lines, report, tables
from experiments.study.test_time.settings import Settings
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status: 2 after wrong settings (one line), 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: run(parse(Settings(), words)), "interrupted; the same command goes on")


def run(config: Settings) -> int:
    """Computes what is not kept yet, and writes results.json, report.md and accuracy.png; returns 0."""
    use_compilation_cache(True)
    study, bodies = Study(config), dict[str, dict[str, object]]()
    for task, phrasing in (one.split("=") for one in config.tasks):
        chosen = choose(study, Cell(task, phrasing, config.seeds[0]))
        bodies[task] = report(task, chosen, *lines(study, task, phrasing, chosen))
        print(tables(f"{task}, phrasing {phrasing}", bodies[task]), flush=True)
        settings = dataclasses.asdict(config)
        write_text(study.folder / "results.json", json_text({"settings": settings, "tasks": bodies}, indent=1) + "\n")
    write_text(study.folder / "report.md", "\n".join(itertools.starmap(tables, bodies.items())))
    plots.accuracy(study.folder / "accuracy.png", bodies)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
