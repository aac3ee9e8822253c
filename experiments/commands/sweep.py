"""Compares learning rates by the held-out loss of the validation split, so that the test split stays unseen.

    rwkv7 sweep --config quickstart --tune.learning_rate 0.03,0.1,0.3,1,3 --seeds 0,1
    rwkv7 sweep --config jsonl --model.checkpoint model.pth --data.train my.jsonl

While the best rate is the least or the largest of several, the next one of 1e-4, 3e-4, ... 3, 10 is tried too; the last
line says which to take. Where tuning diverges the loss is infinite. One line a cell is kept in sweep.jsonl, found again
by settings, data and weights, so an interrupted sweep goes on with the same command. Draws sweep.png and writes
sweep.md. Validation records: --evaluate.max_records
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import Help, command
from experiments.config.commands import Sweep
from experiments.config.loading import load_config, split_config
from experiments.config.overrides import UsageError, take
from experiments.config.schema import RunConfig, check

HELP = Help("sweep", __doc__, (Sweep(), RunConfig()))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; run the same command to go on")


def body(args: list[str]) -> int:
    """Parses the settings and sweeps."""
    own, rest = take(Sweep(), args)
    check_lists(own)
    config = check(load_config(*split_config(rest)))
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, split="validation"))
    folder = Path(config.output or f"runs/sweep-{config.name}").expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output: {folder} is a file; choose another --output")
    from experiments.commands.work import sweep

    return sweep.run(config, own, folder, shlex.join(["rwkv7", "tune", *without_output(args, own)]))


def without_output(args: Sequence[str], own: Sweep) -> list[str]:
    """The words that `rwkv7 tune` takes for the same run: without those of the sweep and its folder."""
    words, kept = take(own, args)[1], []
    while words:
        word = words.pop(0)
        if word == "--output" and words:
            words.pop(0)
        elif not word.startswith(("--output=", "output=")):
            kept.append(word)
    return kept


def check_lists(own: Sweep) -> None:
    """Refuses rates that are not above 0 and seeds that are negative, and empty lists.

    Raises:
      UsageError: in one line.
    """
    for rate in own.tune.learning_rate:
        if not 0 < rate < math.inf:
            raise UsageError(f"tune.learning_rate: {rate:g} is not a number above 0")
    for seed in own.seeds:
        if seed < 0:
            raise UsageError(f"seeds: {seed} is negative; give whole numbers from 0 on")
    if not own.tune.learning_rate or not own.seeds:
        raise UsageError("tune.learning_rate and seeds need at least one number each")
