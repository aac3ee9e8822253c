"""Interleaves packs of heads, so that one has work for the vector units while another waits for the matrix unit."""

from collections.abc import Generator, Iterable
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Stages: TypeAlias = Generator[None, None, Result]
"""The computation of one pack, which yields after each stage."""


def interleave(packs: Iterable[Stages]) -> None:
    """Runs all generators to their ends, one stage of each after the other."""
    running = list(packs)
    while running:
        running = [pack for pack in running if next(pack, StopIteration) is not StopIteration]
