"""Learning curves: computed, published."""

from pathlib import Path

from experiments.config.curves import CurvesConfig
from experiments.study.curves import run as study

__all__ = ["publish", "run"]


def run(config: CurvesConfig) -> int:
    """Computes every selected cell that is missing and reports; returns the exit status."""
    return study.run(config)


def publish(config: CurvesConfig, page: str) -> int:
    """Writes what is there of a study into a page."""
    print(study.publish(config, Path(page)))
    return 0
