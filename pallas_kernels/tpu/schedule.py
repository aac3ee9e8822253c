"""Packs of heads that take turns, so that one has work for the vector units while another waits for the matrix unit."""

from collections.abc import Generator, Iterable
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Turns: TypeAlias = Generator[None, None, Result]


def take_turns(programs: Iterable[Turns]) -> None:
    """Run all generators to their ends, each up to its next `yield` in turn."""
    running = list(programs)
    while running:
        running = [program for program in running if next(program, StopIteration) is not StopIteration]
