"""Decorrelated backpropagation (DBP): an optax transform, and the correlations that it learns from."""

from state_tuning.dbp import correlations, literal, queries, transform
from state_tuning.dbp.correlations import make_correlate, record
from state_tuning.dbp.queries import state_queries
from state_tuning.dbp.transform import DecorrelatedState, condition_numbers, decorrelated, whitened

__all__ = [
    "DecorrelatedState",
    "condition_numbers",
    "correlations",
    "decorrelated",
    "literal",
    "make_correlate",
    "queries",
    "record",
    "state_queries",
    "transform",
    "whitened",
]
