r"""Continues a text with an RWKV-7, from the zero state or a tuned one, streaming to the terminal.

    rwkv7 generate --prompt "Mira has 3 red stones"
    rwkv7 generate --model.checkpoint model.pth --state state.safetensors --prompt - < prompt.txt

Without --model.checkpoint it is the embedded student. Ctrl-C ends the text. A smaller model of the same tokenizer that
proposes tokens makes it faster; greedy text stays as it is, sampled text keeps its distribution:

    rwkv7 generate --model.checkpoint large.pth --draft.checkpoint small.pth --draft.tokens 4

In --prompt and --stop the escapes \n \t \r \\ \xHH \uHHHH \UHHHHHHHH are understood, other backslashes stay:

    rwkv7 generate --prompt 'User: hi\n\nAssistant:' --stop '\n\n' --stop 'User:'
"""

from collections.abc import Sequence

from experiments.config.cli import Help, command
from experiments.config.commands import Generate
from experiments.config.loading import parse
from experiments.config.overrides import UsageError

HELP = Help("generate", __doc__, (Generate(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "")


def body(args: list[str]) -> int:
    """Parses the settings and writes the text."""
    if not args[0].startswith("-") and "=" not in args[0]:
        raise UsageError(f"the model is named by a key: --model.checkpoint {args[0]}")
    config = parse(Generate(), args)
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed must lie in 0..{2**32 - 1}, got {config.seed}")
    from experiments.commands.work import generate

    return generate.show(config)
