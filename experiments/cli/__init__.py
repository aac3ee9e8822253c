"""The `rwkv7` command: a list of sub-commands and nothing else."""

import importlib
import sys
from collections.abc import Sequence

from rwkv7_jax.terminal import exit_status

COMMANDS = {
    "tune": "tunes an initial state and measures it against the untuned model",
    "evaluate": "scores benchmarks from one state or several, as lm-evaluation-harness does",
    "generate": "continues a text",
    "chat": "chats in the terminal, with a state and without",
    "serve": "serves a model over HTTP in the form of OpenAI's API, each request from its own state",
    "convert": "writes a checkpoint in another format",
    "inspect": "says what is in a checkpoint",
    "state": "shows, subtracts, mixes, scales, truncates and converts state files",
    "distill": "compiles a prompt into a state",
    "observe": "trains a small model to observe a larger one, and carries states between them",
    "scale": "answers problems with test-time scaling, guided by a larger model",
    "sweep": "compares learning rates on the validation split",
    "pretrain": "trains an RWKV-7 from scratch",
    "plan": "says whether a training step fits TPUs or GPUs that are not attached",
    "study": "runs all methods on all benchmarks with several seeds",
    "data": "says what is in a file of records, and shows what is learnt of it",
    "doctor": "says what is wrong with the machine, a checkpoint, a state, a file of records",
    "bench": "times the model against other implementations",
    "pocket": "writes text and benchmarks of the invented world",
}
"""Name and what it does; the module is `experiments.commands.NAME`."""

EXAMPLES = (
    "rwkv7 tune --config quickstart",
    "rwkv7 tune --config jsonl --model.checkpoint model.pth --data.train my.jsonl",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command that the first word names, and returns its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        return exit_status(lambda: _print(overview(), 0 if args else 2))
    if args[0] in ("--version", "-V"):
        return exit_status(_version)
    if args[0] not in COMMANDS:
        return _unknown(args[0])
    return exit_status(lambda: importlib.import_module(f"experiments.commands.{args[0]}").main(args[1:]), "interrupted")


def overview() -> str:
    """All commands on one screen."""
    lines = ["RWKV-7 in JAX: tunes states instead of weights.", "", "usage: rwkv7 COMMAND [--key value ...]", ""]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    lines += ["", *(f"  {line}" for line in EXAMPLES), "", "rwkv7 COMMAND --help lists the settings of a command."]
    return "\n".join(lines)


def _print(text: str, status: int) -> int:
    print(text)
    return status


def _unknown(word: str) -> int:
    from experiments.config.overrides import suggest

    known = list(COMMANDS)
    hint = suggest(word, known) or f" (commands: {', '.join(known)})"
    print(f"error: no command {word!r}{hint}", file=sys.stderr)
    return 2


def _version() -> int:
    from rwkv7_jax import __version__

    print(f"rwkv7-jax {__version__}")
    return 0
