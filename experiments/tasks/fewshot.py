"""The solved examples before each record, chosen and ordered as lm-evaluation-harness 0.4.13 does it."""

import random
from collections.abc import Sequence

from experiments.tasks.types import Fewshot, Record

SEED = 1234
"""`fewshot_random_seed` of the harness."""


def choose(
    fewshot: Fewshot, pool: Sequence[Record], records: Sequence[Record], shots: int, seed: int = SEED
) -> list[list[Record]]:
    """The examples of each record, in order. The draws depend on the number of records before: score them in order.

    pool: the examples' split, of the record's own subject where there are subjects.
    Raises: ValueError if the pool is too small.
    """
    if shots == 0:
        return [[] for _ in records]
    needed = shots + (fewshot.drops_equal and fewshot.sampler == "seeded")
    if len(pool) < needed:
        raise ValueError(f"{shots} shots need {needed} examples of split {fewshot.split}, there are {len(pool)}")
    if fewshot.sampler == "first_n":
        return [list(pool[:shots]) for _ in records]
    draw = random.Random(seed)
    return [_drawn(draw, pool, record if fewshot.drops_equal else None, shots) for record in records]


def _drawn(draw: random.Random, pool: Sequence[Record], record: Record | None, shots: int) -> list[Record]:
    """One record's examples; where equal ones leave too few, drawn again among those that differ from it."""
    if record is None:
        return draw.sample(pool, shots)
    found = [other for other in draw.sample(pool, shots + 1) if other != record][:shots]
    return found if len(found) == shots else draw.sample([other for other in pool if other != record], shots)
