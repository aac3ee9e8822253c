"""What every benchmark task gives: requests to a model, and scores from its answers.

The prompts and metrics are those of lm-evaluation-harness 0.4.13 (task versions in each file), so that scores compare.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Record = Mapping[str, Any]


class Loglikelihood(NamedTuple):
    """Asks for log p(continuation | context), natural log, summed over the continuation's tokens."""

    context: str
    continuation: str


class Generate(NamedTuple):
    """Asks for a greedy continuation of `context`, cut before the first of the `stop` strings."""

    context: str
    stop: tuple[str, ...]


Request = Loglikelihood | Generate


class Task(Protocol):
    """One benchmark. A result is a float for a Loglikelihood and a str for a Generate, in the order of the requests.

    `metrics` names what `score` returns for each record (aggregated by the mean over all records); `headline` is the
    one of them to quote. `description(record)` opens every prompt and may be empty.
    """

    name: str
    metrics: tuple[str, ...]
    headline: str

    def description(self, record: Record) -> str: ...

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]: ...

    def score(self, record: Record, results: Sequence[Any]) -> dict[str, float]: ...

    def to_example(self, record: Record) -> tuple[str, str]:
        """(prompt, completion) for training: the zero-shot prompt and the gold answer."""
        ...


def check_record(record: Record, fields: Sequence[str], task: str) -> None:
    """Raises ValueError, naming the task, where a record lacks one of `fields`."""
    missing = [field for field in fields if field not in record]
    if missing:
        have = ", ".join(record) or "none"
        raise ValueError(
            f"a {task} record lacks {', '.join(missing)} (fields: {have}): use the public layout of the data set"
        )


def with_shots(description: str, shots: Sequence[str], prompt: str) -> str:
    """The description, each solved example followed by an empty line, then the prompt."""
    return description + "".join(f"{shot}\n\n" for shot in shots) + prompt


def best(scores: Sequence[float]) -> int:
    """The index of the largest score, the first one among equals."""
    return max(range(len(scores)), key=lambda i: scores[i])
