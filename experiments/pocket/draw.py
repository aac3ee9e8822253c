"""Seeded draws that are the same on every Python version."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Draw:
    """Draws made only from `random.Random.random()`, whose sequence Python's documentation promises to keep.

    `key` is any text; equal keys give equal draws.
    """

    def __init__(self, key: str) -> None:
        self._uniform = random.Random(key).random

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return self._uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + int(self._uniform() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """Returns one item, each as likely."""
        return items[self.integer(0, len(items) - 1)]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` items in random order, none twice. Raises ValueError where there are fewer."""
        if count > len(items):
            raise ValueError(f"cannot draw {count} different items out of {len(items)}")
        left = list(items)
        for i in range(count):
            j = self.integer(i, len(left) - 1)
            left[i], left[j] = left[j], left[i]
        return left[:count]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Returns all items in random order."""
        return self.sample(items, len(items))

    def weighted(self, table: "Weighted[Item]") -> Item:
        """Returns one item by its weight."""
        return table.at(self._uniform())


class Weighted(Generic[Item]):
    """Items with weights, drawn by bisection of their running sum."""

    def __init__(self, items: Sequence[Item], weights: Sequence[float]) -> None:
        self.items = tuple(items)
        self._ends = tuple(accumulate(weights))

    def at(self, fraction: float) -> Item:
        """The item at `fraction` in [0, 1) of the total weight."""
        return self.items[min(bisect_right(self._ends, fraction * self._ends[-1]), len(self.items) - 1)]
