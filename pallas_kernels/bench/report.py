"""The text of a benchmark's report in JSON that every reader opens."""

import json
import math
from collections.abc import Mapping


def report_text(report: Mapping[str, object]) -> str:
    """Returns a report as indented JSON with a line end; numbers that are not finite become null.

    Example:
      >>> report_text({"error": float("nan")})
      '{\\n "error": null\\n}\\n'
    """
    return json.dumps(_plain(report), indent=1, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
