"""How the commands begin and end."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.config.loading import find_config, help_lines, load_config
from experiments.config.overrides import UsageError, suggest
from rwkv7_jax import terminal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Stopped(Exception):
    """The user, or the machine's scheduler, asked to stop, and all is saved."""


class Help(NamedTuple):
    """What a command says about itself."""

    name: str
    """As in `rwkv7 NAME`."""
    text: str | None
    """A docstring: one line, the examples, then whatever else is to be known."""
    settings: "tuple[DataclassInstance, ...]" = ()
    other: "DataclassInstance | None" = None
    """What a config may be instead of the last of the settings."""

    def short(self) -> str:
        """The first line, the examples, and where the rest is."""
        more = f"rwkv7 {self.name} --help lists every setting."
        return "\n\n".join([*(self.text or "").strip().split("\n\n")[:2], more])

    def full(self, name: str | None = None) -> str:
        """The text and every setting with its default, or with its value in the config called `name`."""
        trees = [_named(config, name) for config in self.settings]
        if (
            self.other is not None
            and trees == list(self.settings)
            and (found := _named(self.other, name)) != self.other
        ):
            trees[-1] = found
        lines = [line for config in trees for line in help_lines(config)]
        shown = f"value in {name}" if trees != list(self.settings) else "default; configs set their own"
        head = ["", f"settings, --key value or key=value [{shown}]:"] if lines else []
        return "\n".join([(self.text or "").strip(), *head, *lines])


def _named(default: "DataclassInstance", name: str | None) -> "DataclassInstance":
    """The config called `name` if it is of the kind of `default`, else `default`."""
    try:
        return default if name is None else load_config(name, (), type(default))
    except UsageError:
        return default


def command(
    argv: Sequence[str] | None,
    help: Help,
    body: Callable[[list[str]], int],
    interrupted: str = "interrupted",
    verbs: "Mapping[str, DataclassInstance] | None" = None,
) -> int:
    """Runs a command.

    Args:
      argv: its arguments; None: those of the process.
      help: what -h and --help print (status 0), and in short a command without arguments (status 2).
      body: takes the arguments and returns the exit status.
      interrupted: what is said after Ctrl-C.
      verbs: the settings of each first word, whose own help is shown behind it.

    Returns:
      The exit status: that of `body`; 2 after a one-line error; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "-h" in args or "--help" in args:
        named = [word for word in args if word in (verbs or {})][:1]
        shown = [(verbs or {})[word] for word in named] or list((verbs or {}).values())
        lines = help_text(help, shown, named or list(verbs or {}), find_config(args)[0])
        return exit_status(lambda: _print(lines), "")
    if not args:
        return exit_status(lambda: _print(help.short(), 2), "")
    return exit_status(lambda: body(args), interrupted)


def help_text(help: Help, shown: "Sequence[DataclassInstance]", names: Sequence[str], config: str | None = None) -> str:
    """The whole help, with the settings of the verbs, and with the values of a config."""
    parts = [help.full(config)]
    for name, own in zip(names, shown, strict=True):
        tree = _named(own, config)
        values = f" [value in {config}]" if tree != own else ""
        parts.append("\n".join([f"{help.name} {name}{values}:", *help_lines(tree)]))
    return "\n\n".join(parts)


def chosen(args: Sequence[str], name: str, verbs: Collection[str], default: str | None = None) -> tuple[str, list[str]]:
    """(the verb that the first word names, the other words).

    Raises:
      UsageError: it names none, and there is no default for arguments that begin with a key.
    """
    if args[0] in verbs:
        return args[0], list(args[1:])
    if default is not None and args[0].startswith("--"):
        return default, list(args)
    hint = suggest(args[0], list(verbs)) or f" (there are: {', '.join(verbs)})"
    raise UsageError(f"rwkv7 {name}: no {args[0]!r}{hint}")


def exit_status(body: Callable[[], int], interrupted: str) -> int:
    """`terminal.exit_status`; a run that has `Stopped` ends as one that Ctrl-C ended."""

    def run() -> int:
        try:
            return body()
        except Stopped:
            raise KeyboardInterrupt from None

    return terminal.exit_status(run, interrupted)


def _print(text: str, status: int = 0) -> int:
    print(text)
    return status


def tuning_status(body: Callable[[], int], again: str) -> int:
    """What `body` returns; 130 after an interruption, saying where and what to do `again`; 1 after a tuning that
    diverged."""
    from state_tuning.core.non_finite import NonFiniteError

    try:
        return body()
    except Stopped as place:
        print(f"interrupted at {place}; run the same command to {again}", file=sys.stderr)
        return 130
    except NonFiniteError as error:
        print(f"RESULT: FAIL ({error})")
        return 1
