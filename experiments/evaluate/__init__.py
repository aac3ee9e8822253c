"""Evaluation: benchmarks and held-out losses of a frozen model from any initial states.

Names are imported when first used, so that `python -m experiments.evaluate --help` answers without loading JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.evaluate.evaluator import Evaluator, Scorer, make_scorer

__all__ = ["Evaluator", "Scorer", "make_scorer"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("experiments.evaluate.evaluator"), name)
