"""Says what is in a file of records, shows what is learnt of it, and makes one of a model's own verified solutions.

    rwkv7 data info my.jsonl
    rwkv7 data info my.jsonl --model.checkpoint model.pth --data.max_length 1024
    rwkv7 data show my.jsonl --n 3
    rwkv7 data solve --data.tasks pocket:gsm8k --data.chain gold --output solved.jsonl

info: format, records, turns, tokens, what is cut, repeated, empty or broken, a length and a batch size that suit it,
and how long tuning takes on this machine. With a checkpoint its tokenizer counts, and one short step of it is timed.
show: the text of records as the model sees it, what is learnt between brackets.
solve: samples training problems and keeps what a checker accepts (the exact answer), for `--data.train`.

Exit status of info: 0 RESULT: PASS; 1 RESULT: FAIL, where tuning on the file would stop or learn what is not meant; 2
no such file, or one that holds no records at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from experiments.config.cli import Help, chosen, command
from experiments.config.data_info import DataInfo, DataShow, DataSolve
from experiments.config.loading import parse
from experiments.config.outputs import check_writable
from experiments.config.overrides import check_required

Verb: TypeAlias = DataInfo | DataShow | DataSolve
VERBS: dict[str, Verb] = {"info": DataInfo(), "show": DataShow(), "solve": DataSolve()}
HELP = Help("data", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body, "interrupted", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of the verb and does what it says."""
    verb, rest = chosen(args, "data", VERBS)
    config = check_required(parse(VERBS[verb], rest), f"rwkv7 data {verb} FILE")
    if isinstance(config, DataInfo) and config.json:
        check_writable("json", Path(config.json).expanduser().absolute())
    if isinstance(config, DataSolve):
        check_writable("output", Path(config.output).expanduser().absolute())
        from experiments.commands.work import solve

        return solve.run(config)
    from experiments.commands.work import data

    return data.run(config)
