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
from experiments.config.overrides import check_required

Verb: TypeAlias = PocketText | PocketBenchmark | PocketTokenizer
VERBS: dict[str, Verb] = {"text": PocketText(), "benchmark": PocketBenchmark(), "tokenizer": PocketTokenizer()}
HELP = Help("pocket", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of the verb and does what it says."""
    verb, rest = chosen(args, "pocket", VERBS)
    config = check_required(parse(VERBS[verb], rest), f"rwkv7 pocket {verb}")
    from experiments.commands.work import pocket

    return pocket.run(config)
