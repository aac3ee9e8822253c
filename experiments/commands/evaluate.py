"""Scores benchmarks from the zero state or tuned ones, prompts and scores as in lm-evaluation-harness 0.4.13.

    rwkv7 evaluate --data.tasks pocket:mmlu,pocket:arc --limit 20
    rwkv7 evaluate --model.checkpoint model.pth --data.tasks mmlu,gsm8k --data.dir data
    rwkv7 evaluate --model.checkpoint model.pth --data.tasks gsm8k --data.dir data --states none,tuned.safetensors
    rwkv7 evaluate --model.checkpoint model.pth --data.tasks lm_eval:hellaswag,lm_eval:lambada_openai

Several --states are run side by side and compared with the first. The same command goes on where it was stopped.

tasks: mmlu, mmlu_SUBJECT, mmlu_rwkv (RWKV's own zero-shot protocol), gsm8k, winogrande, arc, with --data.dir;
pocket:mmlu, pocket:gsm8k, pocket:winogrande, pocket:arc are embedded; lm_eval:NAME is any task or group of the
harness (`pip install "rwkv7-jax[lm-eval]"`), with its own data, or with --data.dir from local files where we have them.

Exit status: 0; 2 wrong usage or files (one line); 130 interrupted.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import Help, command
from experiments.config.commands import ONE_DEVICE, Evaluate
from experiments.config.loading import parse
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError, check_required

HELP = Help("evaluate", __doc__, (Evaluate(),))
HARNESS = "lm_eval:"
"""Begins the names of tasks that lm-evaluation-harness runs itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body, "interrupted; run the same command to resume")


def body(args: list[str]) -> int:
    """Parses the settings and evaluates."""
    config = check(check_required(parse(Evaluate(), args)))
    if config.json:
        path = Path(config.json).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable("json", path)
    if config.data.tasks[0].startswith(HARNESS):
        from experiments.commands.work import harness

        return harness.run(config, [task.removeprefix(HARNESS) for task in config.data.tasks])
    from experiments.commands.work import evaluate

    return evaluate.run(config)


def check(config: Evaluate) -> Evaluate:
    """The same settings, if they fit together.

    Raises:
      UsageError: in one line.
    """
    if config.limit is not None and config.limit < 1:
        raise UsageError(f"--limit: {config.limit} must be at least 1")
    if config.batch_size < 1 or config.max_new_tokens < 1:
        raise UsageError("batch_size and max_new_tokens must be at least 1")
    own = [task for task in config.data.tasks if not task.startswith(HARNESS)]
    if len(own) == len(config.data.tasks):
        return config
    if own:
        raise UsageError(f"data.tasks: the harness runs its tasks alone: evaluate {', '.join(own)} in another command")
    if len(config.states) > 1:
        raise UsageError("states: tasks of the harness are run from one state; give one")
    if config.split:
        raise UsageError("split: tasks of the harness have their own; leave it out")
    if config.mesh != ONE_DEVICE:
        raise UsageError("mesh: tasks of the harness run on one device; leave it out")
    if config.data.chain:
        raise UsageError("data.chain: tasks of the harness have their own prompts; leave it out")
    return config
