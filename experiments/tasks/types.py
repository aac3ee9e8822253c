"""The protocol of benchmark tasks: requests to a model, and scores from its answers.

The prompts and metrics are those of lm-evaluation-harness 0.4.13 (task versions in each file), so that scores compare.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

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
Result = float | str
"""The answer to a request: a float to a Loglikelihood, a str to a Generate."""


class Fewshot(NamedTuple):
    """Where a benchmark's solved examples come from, and how they are chosen for each record (`tasks.fewshot`)."""

    split: str
    sampler: Literal["first_n", "seeded"]
    """first_n: the first of the split, in order. seeded: drawn anew for each record, one generator for them all."""
    drops_equal: bool = False
    """Draw one more than needed and drop those equal to the record itself, as the harness does where the split that is
    scored and the one that examples come from have the same setting."""


class Task(Protocol):
    """One benchmark. A result is a float for a Loglikelihood and a str for a Generate, in the order of the requests.

    `metrics` names what `score` returns for each record (aggregated by the mean over all records); `headline` is the
    one of them to quote. `description(record)` opens every prompt and may be empty.
    """

    name: str
    metrics: tuple[str, ...]
    headline: str
    protocol: str
    """Whose prompts and scores these are, in a few words."""
    split: str
    """The split that is scored."""
    fewshot: Fewshot
    shots: int
    """Solved examples in public leaderboards."""
    prefix: tuple[int, ...]
    """Tokens before every prompt."""

    def description(self, record: Record) -> str:
        """Returns what opens the prompt."""
        ...

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Returns what the model is asked for one record, after solved examples."""
        ...

    def score(self, record: Record, results: Sequence[Any]) -> dict[str, float]:
        """Returns each metric of one record."""
        ...

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (prompt, completion) for training: the zero-shot prompt and the right answer."""
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
    """The index of the largest score, the first one among equals. Raises ValueError for a score that is not finite."""
    for place, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(
                f"the score of choice {place + 1} of {len(scores)} is {score}: nothing can be chosen from it"
            )
    return max(range(len(scores)), key=lambda i: scores[i])
