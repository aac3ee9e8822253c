"""What the rows of a study are tuned on and measured with."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from experiments.config.curves import parts
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, EvaluateConfig, plain_name
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import Pair
from experiments.data.text_file import read_text
from experiments.pocket import text

TEXT_SEED = 7_000_001
"""Of the pocket world's documents that no model was trained on."""


def jobs_of(tasks: Sequence[str], data: DataConfig, evaluate: EvaluateConfig, seed: int) -> dict[str, Job]:
    """Returns the jobs by the names of `CurvesConfig.tasks`.

    Raises:
      UsageError: in one line: no such benchmark or phrasing, or whatever is wrong with the files.
    """
    found = {}
    for task in tasks:
        name, chain = parts(task)
        (job,) = load_jobs(dataclasses.replace(data, tasks=(name,), chain=chain), evaluate, seed)
        found[plain_name(task)] = job._replace(name=plain_name(task))
    return found


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Returns every prompt with the completion of another record: what is learnt then is not the task.

    Raises:
      ValueError: there is a single record.
    """
    if len(pairs) < 2:
        raise ValueError("one record has no other record whose completion it could get")
    order = list(range(len(pairs)))
    random.Random(f"shuffled/{seed}").shuffle(order)
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [Pair(pair.prompt, pairs[other[index]].completion) for index, pair in enumerate(pairs)]


def documents(count: int, file: str | None) -> list[Pair]:
    """Returns plain texts.

    Args:
      count: how many, the first ones.
      file: documents by empty lines; None: the pocket world's.

    Raises:
      UsageError: the file has none.
    """
    if file is None:
        stream = text.documents(TEXT_SEED)
        return [Pair("", next(stream)) for _ in range(count)]
    path = Path(file).expanduser()
    found = [part.strip() for part in read_text(path).replace("\r\n", "\n").split("\n\n") if part.strip()]
    if not found:
        raise UsageError(f"text_file: {path} has no text")
    return [Pair("", part) for part in found[:count]]
