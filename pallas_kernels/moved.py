"""Modules that were run with `python -m`, and the module that took over."""

import sys
from collections.abc import Sequence

MOVED = {"pallas_kernels.gpu_check": "pallas_kernels.bench.gpu"}


def refuse_moved(argv: Sequence[str], words: Sequence[str]) -> None:
    """Ends the process with one line if it runs a module that has moved.

    Args:
      argv: `sys.argv`; its first word is "-m" while Python looks for the module that it runs.
      words: `sys.orig_argv`.

    Raises:
      SystemExit: the module has moved.
    """
    if argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return
    module = words[words.index("-m") + 1]
    if module in MOVED:
        print(f"error: python -m {module} is now: python -m {MOVED[module]}", file=sys.stderr)
        raise SystemExit(2)
