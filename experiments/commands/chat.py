r"""Chats with an RWKV-7 in the terminal, from the zero state or a tuned one; /help lists what can be done in it.

    rwkv7 chat --model.checkpoint model.pth --state state.safetensors
    rwkv7 chat --model.checkpoint model.pth --state state.safetensors --ab true
    rwkv7 chat < lines.txt

Without --model.checkpoint it is the embedded student. Ctrl-C ends an answer, Ctrl-D the chat. A backslash at the end of
a line, or three quotes around lines, make one turn of several lines. From a file or a pipe each line is a turn or a
command, and is shown before its answer; the exit status is 1 if a command failed.
"""

from collections.abc import Sequence

from experiments.config.chat import Chat
from experiments.config.cli import Help, command, exit_status
from experiments.config.loading import parse
from experiments.config.overrides import UsageError

HELP = Help("chat", __doc__, (Chat(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if a piped command failed; 2 after a one-line error; 130 after Ctrl-C."""
    if argv is not None and not argv:
        return exit_status(lambda: body([]), "")
    return command(argv, HELP, body, "")


def body(args: list[str]) -> int:
    """Parses the settings and chats."""
    if args and not args[0].startswith("-") and "=" not in args[0]:
        raise UsageError(f"the model is named by a key: --model.checkpoint {args[0]}")
    config = parse(Chat(), args)
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed must lie in 0..{2**32 - 1}, got {config.seed}")
    from experiments.chat import session

    return session.run(config)
