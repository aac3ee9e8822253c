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
