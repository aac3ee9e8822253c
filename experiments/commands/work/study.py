"""The paper's table: computed, its learning rates searched, published."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config.study import TableRunConfig
from experiments.study import publish as page
from experiments.study import rate_search
from experiments.study import run as table
from experiments.study.plan import Plan


def run(config: TableRunConfig) -> int:
    """Computes every missing cell and reports; returns the exit status."""
    return table.run(config)


def rates(config: TableRunConfig, only: Sequence[str]) -> int:
    """Searches the learning rates of the methods named, or of all."""
    return rate_search.search(Plan(config), only or None)


def publish(config: TableRunConfig, name: str) -> int:
    """Writes a finished table into a page."""
    print(page.publish(Plan(config), Path(name)))
    return 0
