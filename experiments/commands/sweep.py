"""`python -m experiments.commands.sweep --config quickstart`: held-out loss for each learning rate.

Losses are of the validation split, so that the test split stays unseen; where tuning diverges they are infinite. One
row a cell is kept in sweep.jsonl, found again by settings, data and weights, so an interrupted sweep goes on with the
same command. Draws sweep.png and writes sweep.md.
"""

import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.cli import documented
from experiments.config.overrides import UsageError
from experiments.config.schema import RunConfig, check, config_hash, digest, load_config
from experiments.run import Tools, finished, make_tools, measure_losses, split_config, tune
from experiments.study.store import Cell, Store

if TYPE_CHECKING:
    from experiments.data.jobs import Job

RATES, SEEDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0, 1, 2)


def cells(config: RunConfig, rates: Sequence[float], seeds: Sequence[int], log: Path) -> Iterator[dict[str, Any]]:
    """A row {task, rate, seed, loss_vanilla, loss_tuned} of each task, rate and seed. Those that `log` has of the same
    settings, data and weights are read back, new ones are written to it."""
    from experiments import build
    from experiments.data.jobs import load_jobs
    from experiments.training.metrics_log import MetricsLog
    from experiments.training.preemption import Interrupt
    from rwkv7_jax.compile_cache import use_compilation_cache

    use_compilation_cache(config.system.compilation_cache)
    lm, jobs = build.build(config.model), load_jobs(config)
    identity = digest([config_hash(config), lm.weights_hash, [job.fingerprint for job in jobs]])
    store = Store(log)
    with Interrupt() as interrupt, tempfile.TemporaryDirectory() as scratch:
        for rate in rates:
            changed = dataclasses.replace(config, tune=dataclasses.replace(config.tune, learning_rate=rate))
            tools = make_tools(changed, lm, identity, MetricsLog(Path(scratch) / "steps.jsonl"), interrupt, jobs)
            for seed in seeds:
                tools = tools._replace(config=dataclasses.replace(changed, seed=seed))
                for job in jobs:
                    cell = Cell("sweep", "tuned", job.name, seed, [identity, rate])
                    known = store.get(cell)
                    if known is None:
                        known = store.add(cell, {"rate": rate, **losses(tools, job, Path(scratch) / cell.key)})
                    yield known


def losses(tools: Tools, job: "Job", folder: Path) -> dict[str, float]:
    """Held-out loss before and after tuning, infinite where tuning diverges."""
    from rwkv7_jax import zero_state
    from state_tuning.core.non_finite import NonFiniteError

    before = measure_losses(tools, zero_state(tools.lm.model.config, None), job)
    try:
        after = measure_losses(*finished(tools, tune(tools, job, folder)), job)
    except NonFiniteError:
        after = math.inf
    return {"loss_vanilla": before, "loss_tuned": after if math.isfinite(after) else math.inf}


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[float, tuple[float, float, float]]]:
    """task -> rate -> (mean, least, largest) held-out loss over seeds, after tuning."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["task"], {}).setdefault(row["rate"], []).append(row["loss_tuned"])
    return {t: {r: (sum(x) / len(x), min(x), max(x)) for r, x in by_rate.items()} for t, by_rate in found.items()}


def finite(by_rate: dict[float, tuple[float, float, float]]) -> dict[float, tuple[float, float, float]]:
    """The rates at which no seed diverges: what a picture can show."""
    return {rate: three for rate, three in by_rate.items() if math.isfinite(three[-1])}


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
      UsageError: a list is missing or holds something else than rates above 0 or seeds from 0 on.
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
    for rate in found["--rates"]:
        if not 0 < rate < math.inf:
            raise UsageError(f"--rates: {rate:g} is not a number above 0")
    for seed in found["--seeds"]:
        if seed < 0:
            raise UsageError(f"--seeds: {seed} is negative; give whole numbers from 0 on")
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
        folder = Path(config.output_dir or f"runs/sweep-{config.name}").expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"output_dir: {folder} is a file; choose another --output-dir")
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in cells(config, rates, seeds, folder / "sweep.jsonl"):
            rows.append(row)
            change = f"{row['loss_vanilla']:.4f} -> {row['loss_tuned']:.4f}"
            print(f"{row['task']}: rate {row['rate']:g}, seed {row['seed']}: {change}", flush=True)
        from experiments.reporting.plots import sweep_curves

        shown = {task: finite(by_rate) for task, by_rate in means(rows).items()}
        sweep_curves(folder / "sweep.png", shown, {row["task"]: row["loss_vanilla"] for row in rows})
        (folder / "sweep.md").write_text(table(rows) + "\n")
        print(f"\n{table(rows)}\n\npicture: {folder / 'sweep.png'}")
        return 0

    return documented(argv, lambda: text, sweep, "interrupted; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
