"""Modules that were run with `python -m`, and the command that took over."""

import sys
from collections.abc import Mapping, Sequence

MOVED = {"rwkv7_jax.generate": "rwkv7 generate"}


def refuse_moved(moved: Mapping[str, str], argv: Sequence[str], words: Sequence[str]) -> None:
    """Ends the process with one line if it runs a module that is now a command.

    Args:
      moved: module -> what to run instead.
      argv: `sys.argv`; its first word is "-m" while Python looks for the module that it runs.
      words: `sys.orig_argv`.

    Raises:
      SystemExit: the module has moved.
    """
    if argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return
    module = words[words.index("-m") + 1]
    if module in moved:
        print(f"error: python -m {module} is now: {moved[module]}", file=sys.stderr)
        raise SystemExit(2)
