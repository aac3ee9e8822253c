"""How the commands of this package end."""

import sys
from collections.abc import Callable

from experiments.interrupt import Interrupted


def exit_status(body: Callable[[], int], interrupted: str) -> int:
    """What `body` returns; 2 after its ValueError or OSError as one line; 130 after Ctrl-C, saying `interrupted`."""
    try:
        return body()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print(interrupted, file=sys.stderr)
        return 130


def tuning_status(body: Callable[[], int], again: str) -> int:
    """What `body` returns; 130 after an interruption, saying where and what to do `again`; 1 after a tuning that
    diverged."""
    from state_tuning.guard import NonFiniteError

    try:
        return body()
    except Interrupted as place:
        print(f"interrupted at {place}; run the same command to {again}", file=sys.stderr)
        return 130
    except NonFiniteError as error:
        print(f"RESULT: FAIL ({error})")
        return 1
