"""The readers of the files that runs of the project leave."""

from collections.abc import Iterator

from tests.malformed.sandbox import Reader


def readers() -> Iterator[Reader]:
    """Outcomes, settings, metrics, ledgers, cells, answers and portions."""
    yield from ()
