"""The records of a study of curves."""

from typing import Any, TypeAlias

CurveRecord: TypeAlias = dict[str, Any]
"""A line of cells.jsonl, checked as it is read (`experiments.study.store`): of the kind `curve` (a point with one seed:
rate, steps, and a value for each held-out record), `rate`, `timing` or `solutions`."""
