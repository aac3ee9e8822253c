"""Compiles a prompt into a state file, and measures what that loses and saves.

    rwkv7 distill --model.checkpoint model.pth --prompt_file system.txt --output state.safetensors

Whoever starts from the state file need not read the prompt again. By default the file is one that every tool around
RWKV-7 can use: matrices alone, fitted so that what is lost with the token-shift states hurts least. `--keep_shifts`
keeps everything in our own format: the exact state, nothing to fit. Prints what each form loses (KL of the next token,
on texts that were not fitted) and what is saved.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import Help, command
from experiments.config.commands import Distill
from experiments.config.loading import parse
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError, check_required
from rwkv7_jax.terminal import standard_input

HELP = Help("distill", __doc__, (Distill(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written")


def body(args: list[str]) -> int:
    """Parses the settings and compiles the prompt."""
    config = settings(args)
    prompt = _read_prompt(config.prompt_file)
    check(config)
    from experiments.commands.work import distill

    return distill.run(config, prompt)


def settings(args: Sequence[str]) -> Distill:
    """The settings; the home folder of the output is expanded."""
    config = check_required(parse(Distill(), args))
    return dataclasses.replace(config, output=os.path.expanduser(config.output))


def check(config: Distill) -> None:
    """Finds what cannot work before anything is computed.

    Raises:
      UsageError: in one line.
    """
    if min(config.texts, config.length, config.batch_size) < 1 or config.tune.steps < 0:
        raise UsageError("texts, length and batch_size must be above 0, tune.steps not negative")
    if not 0 < config.tune.learning_rate < math.inf:
        raise UsageError("tune.learning_rate: must be a number above 0")
    check_writable("output", Path(config.output).absolute())
    if config.rank and config.keep_shifts:
        raise UsageError("rank and keep_shifts exclude each other: the fit of factors has no token-shift states")


def _read_prompt(name: str) -> str:
    """The text of a file, or of standard input for "-"."""
    text = standard_input("--prompt_file") if name == "-" else _text(Path(name).expanduser())
    if not text:
        raise ValueError(f"{name}: the prompt is empty")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the prompt is not valid UTF-8") from None
