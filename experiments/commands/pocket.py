"""Writes text, benchmark records or the tokenizer of the pocket world, the invented world of the embedded models.

    rwkv7 pocket text --n 5 --seed 1
    rwkv7 pocket benchmark pocket:gsm8k --split test --output x.jsonl
    rwkv7 pocket tokenizer --output tokenizer.json

Without --output it prints.
"""

from collections.abc import Sequence
from typing import TypeAlias

from experiments.config.cli import Help, chosen, command
from experiments.config.commands import PocketBenchmark, PocketText, PocketTokenizer
from experiments.config.loading import parse
from experiments.config.overrides import UsageError, check_required

Verb: TypeAlias = PocketText | PocketBenchmark | PocketTokenizer
VERBS: dict[str, Verb] = {"text": PocketText(), "benchmark": PocketBenchmark(), "tokenizer": PocketTokenizer()}
HELP = Help("pocket", __doc__)
BYTES_AND_END = 257


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of the verb and does what it says."""
    verb, rest = chosen(args, "pocket", VERBS)
    config = check(check_required(parse(VERBS[verb], rest), f"rwkv7 pocket {verb} TASK"))
    from experiments.commands.work import pocket

    return pocket.run(config)


def check(config: Verb) -> Verb:
    """The same settings, if they can be met.

    Raises:
      UsageError: in one line.
    """
    if isinstance(config, PocketText) and config.n < 0:
        raise UsageError(f"n: {config.n} must not be negative")
    if isinstance(config, PocketTokenizer) and config.size is not None and config.size < BYTES_AND_END:
        raise UsageError(f"size: {config.size} must be at least {BYTES_AND_END}: all bytes and the end of a text")
    return config
