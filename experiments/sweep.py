"""`python -m experiments.sweep --config quickstart`: which learning rate? Held-out loss for each rate, seed and task.

Losses are of the validation split, so that the test split stays unseen. One row a cell is kept in sweep.jsonl, and an
interrupted sweep goes on with the same command. Draws sweep.png and writes sweep.md.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.command import documented
from experiments.config import RunConfig, check, config_hash, load_config
from experiments.overrides import UsageError
from experiments.run import finished, make_tools, measure_losses, split_config, tune

RATES, SEEDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0, 1, 2)
COLUMNS = ("task", "rate", "seed", "loss_vanilla", "loss_tuned")


def cells(config: RunConfig, rates: Sequence[float], seeds: Sequence[int], log: Path) -> Iterator[dict[str, Any]]:
    """One row of `COLUMNS` for each task, rate and seed; rows in `log` are read back, new ones written to it."""
    from experiments import build
    from experiments.interrupt import Interrupt
    from experiments.jobs import load_jobs
    from experiments.metrics import MetricsLog
    from rwkv7_jax import zero_state
    from rwkv7_jax.compile_cache import use_compilation_cache

    use_compilation_cache(config.system.compilation_cache)
    done = {tuple(row[key] for key in COLUMNS[:3]): row for row in map(json.loads, log.read_text().splitlines())}
    built, jobs = build.build(config.model), load_jobs(config)
    with Interrupt() as interrupt, tempfile.TemporaryDirectory() as scratch:
        for rate in rates:
            changed = dataclasses.replace(config, tune=dataclasses.replace(config.tune, learning_rate=rate))
            tools = make_tools(
                changed, built, config_hash(changed), MetricsLog(Path(scratch) / "steps.jsonl"), interrupt, jobs
            )
            for seed in seeds:
                tools = tools._replace(config=dataclasses.replace(changed, seed=seed))
                for job in jobs:
                    if (job.name, rate, seed) not in done:
                        before = measure_losses(tools, zero_state(built.model.config, None), job)
                        tuned = tune(tools, job, Path(scratch) / f"{job.name}-{rate}-{seed}")
                        values = (job.name, rate, seed, before, measure_losses(*finished(tools, tuned), job))
                        row = dict(zip(COLUMNS, values, strict=True))
                        with log.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                        done[job.name, rate, seed] = row
                    yield done[job.name, rate, seed]


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[float, tuple[float, float, float]]]:
    """task -> rate -> (mean, least, largest) held-out loss over seeds, after tuning."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["task"], {}).setdefault(row["rate"], []).append(row["loss_tuned"])
    return {t: {r: (sum(x) / len(x), min(x), max(x)) for r, x in by_rate.items()} for t, by_rate in found.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean held-out loss by task and rate, vanilla beside it, and the mean fall over tasks."""
    by_task, vanilla = means(rows), {row["task"]: row["loss_vanilla"] for row in rows}
    rates = sorted({row["rate"] for row in rows})
    lines = [
        "| task | vanilla | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |",
        "|---" * (len(rates) + 2) + "|",
    ]
    for task, losses in by_task.items():
        lines.append(
            f"| {task} | {vanilla[task]:.3f} | " + " | ".join(f"{losses[rate][0]:.3f}" for rate in rates) + " |"
        )
    falls = [sum(vanilla[task] - losses[rate][0] for task, losses in by_task.items()) / len(by_task) for rate in rates]
    return "\n".join([*lines, "| mean fall | | " + " | ".join(f"{fall:.3f}" for fall in falls) + " |"])


def split_lists(args: list[str]) -> tuple[tuple[float, ...], tuple[int, ...], list[str]]:
    """(rates, seeds, other arguments) from `--rates 0.01,0.1` and `--seeds 0,1`.

    Raises:
      UsageError: a list is missing or holds something else than numbers.
    """
    found: dict[str, Any] = {"--rates": RATES, "--seeds": SEEDS}
    for key, kind in (("--rates", float), ("--seeds", int)):
        if key in args:
            at = args.index(key)
            try:
                found[key] = tuple(kind(word) for word in args[at + 1].split(","))
            except (IndexError, ValueError):
                raise UsageError(f"{key} needs numbers with commas between them, for example {key} 1,2") from None
            del args[at : at + 2]
    return found["--rates"], found["--seeds"], args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""
    text = (
        f"{__doc__}\n--rates {','.join(map(str, RATES))}\n--seeds {','.join(map(str, SEEDS))}\n"
        "and every setting of experiments.run; validation records: --evaluate.max_records"
    )

    def sweep(args: list[str]) -> int:
        rates, seeds, rest = split_lists(args)
        config = check(load_config(*split_config(rest)))
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, split="validation"))
        folder = Path(config.output_dir or f"runs/sweep-{config.name}")
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"sweep-{config_hash(config)[:12]}.jsonl"
        log.touch()
        rows = []
        for row in cells(config, rates, seeds, log):
            rows.append(row)
            losses = f"{row['loss_vanilla']:.4f} -> {row['loss_tuned']:.4f}"
            print(f"{row['task']}: rate {row['rate']:g}, seed {row['seed']}: {losses}", flush=True)
        from experiments.plots import sweep_curves

        sweep_curves(folder / "sweep.png", means(rows), {row["task"]: row["loss_vanilla"] for row in rows})
        (folder / "sweep.md").write_text(table(rows) + "\n")
        print(f"\n{table(rows)}\n\npicture: {folder / 'sweep.png'}")
        return 0

    return documented(argv, lambda: text, sweep, "interrupted; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
