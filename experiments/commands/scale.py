"""Answers problems with test-time scaling: a larger model guides each answer.

    rwkv7 scale --data.tasks pocket:gsm8k --teacher.checkpoint pocket/teacher
    rwkv7 scale --data.file my.jsonl --teacher.checkpoint http://HOST/v1 --teacher.model NAME

Each prompt gets its own change of the initial state, found from what the larger model says of the student's own
chains, and thrown away after it. Shows accuracy against budget, of the adapted model alone and of a vote over all its
chains, beside greedy answers, self-consistency, best-of-N and a vote with the same scorer, and the larger model alone.
The teacher is another RWKV-7 checkpoint, or any OpenAI-compatible endpoint. A killed run goes on with the same command.
"""

from collections.abc import Sequence

from experiments.config.cli import Help, command
from experiments.config.loading import parse
from experiments.config.overrides import UsageError, check_required
from experiments.config.scale import Scale

HELP = Help("scale", __doc__, (Scale(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 interrupted (the same command resumes)."""
    return command(argv, HELP, body, "interrupted; run the same command to go on")


def body(args: list[str]) -> int:
    """Parses the settings and answers."""
    config = check(check_required(parse(Scale(), args)))
    from experiments.commands.work import scale

    return scale.run(config)


def check(config: Scale) -> Scale:
    """The same settings, if they fit together.

    Raises:
      UsageError: in one line.
    """
    if config.limit < 2 or config.batch_size < 1:
        raise UsageError("limit must be at least 2 (an interval needs two), batch_size at least 1")
    if len(config.data.tasks) > 1:
        raise UsageError(f"data.tasks: one task at a time, not {', '.join(config.data.tasks)}")
    if config.data.dir and config.data.file:
        raise UsageError("data.dir and data.file are two sources: give one of them")
    if config.data.chain and config.data.file and not config.data.tasks:
        raise UsageError("data.chain goes with benchmarks: add --data.tasks mmlu, or leave it out")
    teacher = config.teacher
    if teacher.checkpoint.startswith(("http://", "https://")):
        if not teacher.model:
            raise UsageError("teacher.model: name the model behind the endpoint")
        if teacher.offline and not teacher.replay:
            raise UsageError("teacher.offline needs --teacher.replay FILE")
        if teacher.state:
            raise UsageError("teacher.state goes with a checkpoint: a server has its own")
    return config
