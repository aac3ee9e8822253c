"""Compiles a prompt, a larger model or preferences into a state file, and measures what that loses or gains.

    rwkv7 distill --model.checkpoint model.pth --prompt_file system.txt --output state.safetensors
    rwkv7 distill --model.checkpoint model.pth --teacher.checkpoint larger.pth --data.train my.jsonl
    rwkv7 distill --model.checkpoint model.pth --preferences pairs.jsonl --state start.safetensors

A prompt: whoever starts from the state file need not read it again. By default the file is one that every tool around
RWKV-7 can use: matrices alone, fitted so that what is lost with the token-shift states hurts least. `--keep_shifts`
keeps everything in our own format: the exact state, nothing to fit. Prints what each form loses (KL of the next token,
on texts that were not fitted) and what is saved.

A larger model: its next-token distributions on your texts, or on the completions of your prompts, are the targets; of
an address its likeliest tokens. Preferences, {"prompt", "chosen", "rejected"} a line: direct preference optimisation
(DPO). Both print what they are on records that were held out, before and after.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import Help, command
from experiments.config.distill import LENGTHS, RATES, TEXTS, Distill
from experiments.config.loading import parse
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError, check_required
from rwkv7_jax.terminal import standard_input

HELP = Help("distill", __doc__, (Distill(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written")


def body(args: list[str]) -> int:
    """Parses the settings and compiles."""
    config = settings(args)
    check_sources(config)
    prompt = _read_prompt(config.prompt_file) if config.prompt_file else ""
    check(config)
    from experiments.commands.work import distill, distill_texts

    return distill.run(config, prompt) if prompt else distill_texts.run(config)


def settings(args: Sequence[str]) -> Distill:
    """The settings, with those that depend on what is compiled; home folders of the outputs are expanded."""
    config = check_required(parse(Distill(), args))
    source, rate = config.source, config.tune.learning_rate
    tune = dataclasses.replace(config.tune, learning_rate=RATES[source] if rate is None else rate)
    return dataclasses.replace(
        config,
        output=os.path.expanduser(config.output),
        tune=tune,
        texts=config.texts or TEXTS[source],
        length=config.length or LENGTHS[source],
    )


def check_sources(config: Distill) -> None:
    """Finds what is missing, or too much, of what is compiled.

    Raises:
      UsageError: in one line.
    """
    teacher = config.teacher
    given = [
        name
        for name, value in (
            ("prompt_file", config.prompt_file),
            ("teacher.checkpoint", teacher.checkpoint),
            ("preferences", config.preferences),
        )
        if value
    ]
    if not given:
        raise UsageError(
            "nothing to compile: give --prompt_file FILE, --teacher.checkpoint MODEL or --preferences FILE"
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: compile one, and the next from its --state")
    if config.state and config.prompt_file:
        raise UsageError("state goes with a teacher or preferences: a prompt's state begins with its own")
    if teacher.checkpoint and not config.data.train:
        raise UsageError("teacher.checkpoint needs --data.train FILE: the texts on which the larger model is met")
    if teacher.checkpoint.startswith(("http://", "https://")) and not teacher.model:
        raise UsageError("teacher.model: name the model behind the endpoint")


def check(config: Distill) -> None:
    """Finds what cannot work before anything is computed.

    Raises:
      UsageError: in one line.
    """
    if min(config.texts, config.length, config.batch_size) < 1 or config.tune.steps < 0:
        raise UsageError("texts, length and batch_size must be above 0, tune.steps not negative")
    rate, tune = config.tune.learning_rate, config.tune
    if rate is None or not 0 < rate < math.inf:
        raise UsageError("tune.learning_rate: must be a number above 0")
    if not 0 < tune.mixture < 1 or not 0 <= tune.hard <= 1 or not 0 < tune.beta < math.inf:
        raise UsageError("tune.mixture must lie between 0 and 1, tune.hard too, tune.beta above 0")
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
