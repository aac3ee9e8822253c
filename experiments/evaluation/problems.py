"""Problems for test-time scaling, from a pocket benchmark or a jsonl file; gold labels stay behind `Item.correct`."""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from experiments.config.overrides import UsageError
from experiments.data.jobs import find_task
from experiments.data.jsonl import Line, read_lines, to_pair
from experiments.pocket import benchmarks
from experiments.tasks import Generate, Record, Task
from experiments.tasks.gsm8k import NO_MATCH, flexible
from state_tuning.test_time_scaling.rollouts import Problem

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Item(NamedTuple):
    """One problem, how its answer is judged, and which part of a chain is its answer."""

    problem: Problem
    correct: Callable[[Sequence[Any]], float]
    """results -> 1.0 or 0.0"""
    answer: Callable[[str], Hashable]
    """text of a chain -> what self-consistency counts, None if it has no answer"""


def load(task: str | None, data: str | None, match: str, split: str, count: int) -> list[Item]:
    """The first `count` problems: a pocket benchmark, local records of one, or {"prompt", "completion"} lines.

    Raises:
      UsageError: unknown task, or whatever is wrong with a file, in one line.
    """
    if task is None and data is None:
        raise UsageError("say what to answer: --task mmlu, gsm8k, winogrande or arc, or --data FILE.jsonl")
    if task is None:
        return [from_pair(line, match) for line in read_lines(str(data))[:count]]
    found = find_task(task)
    if data is None:
        return [from_record(found, record) for record in benchmarks.load(found.name, split)[:count]]
    return [_checked(found, line) for line in read_lines(data)[:count]]


def from_record(task: Task, record: Record) -> Item:
    """A benchmark's record: open if it asks for a text, else with its choices."""
    if task.prefix:
        raise UsageError(f"{task.name}: a protocol with tokens before its prompts is not supported here; use mmlu")
    requests = task.requests(record)
    first = requests[0]

    def correct(results: Sequence[Any]) -> float:
        return task.score(record, results)[task.headline]

    if isinstance(first, Generate):
        return Item(Problem(first.context, (), first.stop), correct, _number)
    choices = tuple((r.context, r.continuation) for r in requests if not isinstance(r, Generate))
    return Item(Problem(first.context, choices), correct, str.strip)


def from_pair(line: Line, match: str) -> Item:
    """A {"prompt", "completion"} line. match: `text` compares whole answers, `number` the last number of each."""
    prompt, completion = to_pair(line)
    if not prompt:
        raise UsageError(f'{line.where}: a problem needs a "prompt"')
    read: Callable[[str], Hashable] = last_number if match == "number" else plain
    gold = read(completion)
    if gold is None:
        raise UsageError(f"{line.where}: the completion has no number to compare; use --match text")
    return Item(Problem(prompt), lambda results: float(read(results[0]) == gold), read)


def plain(text: str) -> str:
    """Lower case, single spaces, no space at the ends."""
    return " ".join(text.split()).lower()


def last_number(text: str) -> str | None:
    """The last number in a text, without commas and a trailing `.0`; None if there is none."""
    found = NUMBER.findall(text)
    return re.sub(r"\.0+$", "", found[-1].replace(",", "")) if found else None


def _number(text: str) -> str | None:
    found = flexible(text)
    return None if found == NO_MATCH else re.sub(r"[,$]|\.$", "", found)


def _checked(task: Task, line: Line) -> Item:
    try:
        return from_record(task, line.record)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{line.where}: {error}") from None
