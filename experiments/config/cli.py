"""How the commands of this package begin and end."""

import sys
from collections.abc import Callable, Sequence

from experiments.training.preemption import Interrupted
from rwkv7_jax import terminal


def documented(
    argv: Sequence[str] | None, text: Callable[[], str], body: Callable[[list[str]], int], interrupted: str
) -> int:
    """`exit_status` of body(arguments), those of the process if `argv` is None; with -h or --help the text and 0,
    with no arguments the text and 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or "-h" in args or "--help" in args:
        print(text())
        return 0 if args else 2
    return exit_status(lambda: body(args), interrupted)


def take_word(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """(what stands behind the last `name=`, the other arguments)."""
    begin = f"{name}="
    found = [word.removeprefix(begin) for word in args if word.startswith(begin)]
    return (found[-1] if found else None), [word for word in args if not word.startswith(begin)]


def exit_status(body: Callable[[], int], interrupted: str) -> int:
    """`terminal.exit_status`, to which an `Interrupted` run is one that Ctrl-C ended."""

    def run() -> int:
        try:
            return body()
        except Interrupted:
            raise KeyboardInterrupt from None

    return terminal.exit_status(run, interrupted)


def tuning_status(body: Callable[[], int], again: str) -> int:
    """What `body` returns; 130 after an interruption, saying where and what to do `again`; 1 after a tuning that
    diverged."""
    from state_tuning.core.non_finite import NonFiniteError

    try:
        return body()
    except Interrupted as place:
        print(f"interrupted at {place}; run the same command to {again}", file=sys.stderr)
        return 130
    except NonFiniteError as error:
        print(f"RESULT: FAIL ({error})")
        return 1
