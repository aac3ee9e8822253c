"""The paper's table: computed, its learning rates searched, published."""

from collections.abc import Sequence
from pathlib import Path

from experiments.study import publish as page
from experiments.study import rate_search
from experiments.study import run as table
from experiments.study.plan import Plan

__all__ = ["Plan", "publish", "rates", "run"]


def run(plan: Plan) -> int:
    """Computes every missing cell and reports; returns the exit status."""
    return table.run(plan.config)


def rates(plan: Plan, only: Sequence[str]) -> int:
    """Searches the learning rates of the methods named, or of all."""
    return rate_search.search(plan, only or None)


def publish(plan: Plan, name: str) -> int:
    """Writes a finished table into a page."""
    print(page.publish(plan, Path(name)))
    return 0
