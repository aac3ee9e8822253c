"""`python -m experiments.bench.steps`: what a tuning step of each method costs, against one of standard state tuning.

All methods run in one process on the same random weights and the same batch, and take steps in turn, so that a busy
machine hits all alike; the median of the rounds counts. Steps come in pairs, because DBP looks at the correlations at
every second one.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.bench.inputs import SHAPES, random_weights, tokens
from experiments.config.methods import (
    BaselineMethod,
    DBPMethod,
    MethodConfig,
    StandardMethod,
    UpscaleDBPMethod,
    UpscaleMethod,
)

if TYPE_CHECKING:
    from rwkv7_jax import RWKV7
    from rwkv7_jax.functional import Params
    from state_tuning.core.objective import Batch

METHODS: dict[str, MethodConfig] = {
    "standard": StandardMethod(),
    "upscale, residual": UpscaleMethod(),
    "upscale, recurrent": UpscaleMethod(map="recurrent"),
    "dbp": DBPMethod(),
    "whitened": DBPMethod(form="whitened"),
    "upscale_dbp": UpscaleDBPMethod(),
    "state_offset": BaselineMethod(name="state_offset"),
    "prefix": BaselineMethod(name="prefix"),
    "lora": BaselineMethod(name="lora"),
}


class Runner:
    """One method: its compiled step and the state that it is at."""

    def __init__(self, method: MethodConfig, model: "RWKV7", params: "Params", batch: "Batch"):
        from experiments import methods
        from state_tuning.core import train

        tune = train.TuneConfig()
        chosen = methods.build(method, model, params, tune, lambda count: batch, 0)
        self.step = train.make_train_step(chosen.model, chosen.optimizer, tune, chosen.method, chosen.correlate)
        self.params, self.batch = params, batch
        self.state = train.init(chosen.optimizer, chosen.method.init())
        self.pair()

    def pair(self) -> float:
        """Seconds per step of two."""
        from experiments.study.timing import take_pair

        self.state, seconds = take_pair(self.step, self.params, self.state, self.batch)
        return seconds


def measure(shape: str, rows: int, length: int, rounds: int, names: list[str]) -> dict[str, float]:
    """method -> median seconds per step."""
    import numpy as np

    from rwkv7_jax import RWKV7
    from state_tuning.core.objective import Example, collate

    config, params = random_weights(shape)
    text = np.asarray(tokens(length + 1, config.vocab_size), np.int32)
    batch = collate([Example(np.roll(text, row), 1, 0) for row in range(rows)], length)
    runners = {}
    for name in names:
        print(f"compiling {name}", file=sys.stderr, flush=True)
        runners[name] = Runner(METHODS[name], RWKV7(config), params, batch)
        assert runners[name].step._cache_size() == 1, f"{name} was compiled twice"
    times: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(rounds):
        print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, runner in runners.items():
            times[name].append(runner.pair())
    return {name: statistics.median(found) for name, found in times.items()}


def table(seconds: dict[str, float]) -> str:
    """Markdown."""
    base = seconds["standard"]
    rows = [f"| {name} | {1000 * value:.0f} | {value / base:.2f} |" for name, value in seconds.items()]
    return "\n".join(["| method | ms a step | times standard |", "|---|---|---|", *rows])


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.steps", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.1B")
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5, help="times that every method is measured in turn")
    parser.add_argument("--only", action="append", choices=METHODS, help="this method (may be given again)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file too")
    args = parser.parse_args(argv)
    names = [name for name in METHODS if name == "standard" or name in (args.only or METHODS)]
    seconds = measure(args.shape, args.rows, args.length, args.rounds, names)
    print(table(seconds))
    if args.json:
        settings = {"shape": args.shape, "rows": args.rows, "length": args.length, "rounds": args.rounds}
        args.json.write_text(json.dumps(settings | {"seconds": seconds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
