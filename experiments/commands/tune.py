"""Tunes an initial state and measures it against the untuned model.

    rwkv7 tune --config quickstart
    rwkv7 tune --config jsonl --model.checkpoint model.pth --data.train my.jsonl
    rwkv7 tune --config quickstart --data.tasks pocket:gsm8k --tune.steps 400 --output runs/longer
    rwkv7 tune --config jsonl --data.train my.jsonl --method.kind grpo --reward number --tune.init state.safetensors

--config takes a name (CONFIGS), a path to a .py, .toml or .json file. `python -m experiments.run` does the same. A
config of a table (`paper_table`) runs all methods on all benchmarks instead, cell by cell, as `rwkv7 study` does.

Exit status: 0 PASS, 1 FAIL, 2 wrong usage or files (one line), 130 interrupted (the same command resumes).
"""

import re
from collections.abc import Sequence

from experiments.config.cli import Help, command, tuning_status
from experiments.config.loading import config_names, load_config, split_config
from experiments.config.schema import RunConfig, check
from experiments.config.study import TableRunConfig

TEXT = (__doc__ or "").replace("CONFIGS", ", ".join(config_names(RunConfig)))
HELP = Help("tune", TEXT, (RunConfig(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body, "interrupted; run the same command to resume from the last checkpoint")


def spelled_out(args: Sequence[str]) -> list[str]:
    """Returns the words with `--reward` as `--method.reward`."""
    return [re.sub(r"^--reward(?==|$)", "--method.reward", word) for word in args]


def body(args: list[str]) -> int:
    """Parses the settings and runs."""
    config = check(load_config(*split_config(spelled_out(args))))
    print(f"{config.name}: seed {config.seed}, writing to {config.folder}", flush=True)
    if isinstance(config, TableRunConfig):
        from experiments.commands.work import study

        return study.run(study.Plan(config))
    from experiments import session
    from experiments.commands.work import automatic

    return tuning_status(lambda: session.run(automatic.chosen(config)), "resume")
