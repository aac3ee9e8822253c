"""Says what is wrong with the machine, a checkpoint, a state, a file of records.

    rwkv7 doctor
    rwkv7 doctor --model.checkpoint model.pth --state state.safetensors --data my.jsonl

Each fault is one line with what to do; notes are good to know. The last line is RESULT: PASS, or RESULT: FAIL with the
number of faults.

Exit status: 0 PASS, 1 FAIL, 2 wrong usage.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import Help, exit_status, help_text
from experiments.config.doctor import Doctor
from experiments.config.loading import parse
from experiments.config.outputs import check_writable

HELP = Help("doctor", __doc__, (Doctor(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; without arguments the machine is looked at."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "-h" in args or "--help" in args:
        return exit_status(lambda: _help(), "")
    return exit_status(lambda: body(args), "interrupted")


def _help() -> int:
    print(help_text(HELP, (), ()))
    return 0


def body(args: list[str]) -> int:
    """Parses the settings and looks."""
    config = parse(Doctor(), args)
    if config.json:
        check_writable("json", Path(config.json).expanduser().absolute())
    from experiments.commands.work import doctor

    return doctor.run(config)
