"""Problems for test-time scaling, from a pocket benchmark or a jsonl file; gold labels stay behind `Item.correct`."""

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from experiments.config.overrides import UsageError
from experiments.config.schema import POCKET, DataConfig, check_tasks
from experiments.data import load as sources
from experiments.data.jobs import find_task
from experiments.data.jsonl import Line, read_lines, to_pair
from experiments.evaluation import numbers
from experiments.pocket import benchmarks
from experiments.tasks import Generate, Record, Task
from experiments.tasks.chains import ChainTask
from experiments.tasks.types import Result
from state_tuning.test_time_scaling.rollouts import Problem


class Item(NamedTuple):
    """One problem, how its answer is judged, and which part of a chain is its answer."""

    problem: Problem
    correct: Callable[[Sequence[Result]], float]
    """results -> 1.0 or 0.0"""
    answer: Callable[[str], Hashable]
    """text of a chain -> what self-consistency counts, None if it has no answer"""


def load(
    task: str | None,
    data: str | None,
    match: str,
    split: str,
    count: int,
    folder: str | None = None,
    chain: str | None = None,
) -> list[Item]:
    """Loads the first `count` problems: a benchmark, local records of one, or {"prompt", "completion"} lines.

    Args:
      task: pocket:mmlu, ... (embedded); mmlu, gsm8k, winogrande or arc, in `folder` or `data`; None: pairs of the file.
      data: a .jsonl file; None: the benchmark.
      match: how the answers to pairs are compared, `text` or `number`.
      split: of the benchmark.
      count: problems at most.
      folder: where the files of real benchmarks lie.
      chain: of a benchmark: the phrasing of answers after a chain of thought; None: the exact protocol.

    Returns:
      The problems, in the order of the file or benchmark.

    Raises:
      UsageError: unknown task, or whatever is wrong with a file, in one line.
    """
    if task is None and data is None:
        raise UsageError("say what to answer: --data.tasks pocket:gsm8k, or --data.file FILE.jsonl")
    if task is None:
        return [from_pair(line, match) for line in read_lines(str(data))[:count]]
    found = find_task(task, chain)
    return [_checked(found, line) for line in _lines(task, data, split, folder)[:count]]


def records(task: str, data: str | None, split: str, folder: str | None = None) -> list[Record]:
    """Returns the records behind the problems of a benchmark, in order; arguments as of `load`.

    Raises:
      UsageError: as `load`.
    """
    return [line.record for line in _lines(task, data, split, folder)]


def _lines(task: str, data: str | None, split: str, folder: str | None) -> Sequence[Line]:
    found = find_task(task)
    check_tasks(DataConfig((task,), folder, data))
    if data is not None:
        return read_lines(data)
    if task.startswith(POCKET):
        records = benchmarks.load(found.name, split)
        return [Line(record, f"{task}, record {number}") for number, record in enumerate(records, 1)]
    return sources.load(found.name, split, str(folder))


def from_record(task: Task, record: Record) -> Item:
    """Returns a benchmark's record as a problem: open if it asks for a text, else with its choices.

    Raises:
      UsageError: the protocol has tokens before its prompts.
    """
    if task.prefix:
        raise UsageError(f"{task.name}: a protocol with tokens before its prompts is not supported here; use mmlu")
    requests = task.requests(record)
    first = requests[0]

    def correct(results: Sequence[Result]) -> float:
        return task.score(record, results)[task.headline]

    if isinstance(first, Generate):
        answer = partial(task.answer, record) if isinstance(task, ChainTask) else last_value
        return Item(Problem(first.context, (), first.stop), correct, answer)
    choices = tuple((r.context, r.continuation) for r in requests if not isinstance(r, Generate))
    return Item(Problem(first.context, choices), correct, str.strip)


def from_pair(line: Line, match: str) -> Item:
    """Returns a {"prompt", "completion"} line as a problem.

    match: `text` compares whole answers, `number` the value of the last number of each.

    Raises:
      UsageError: there is no prompt, or no number in the completion.
    """
    prompt, completion = to_pair(line)
    if not prompt:
        raise UsageError(f'{line.where}: a problem needs a "prompt"')
    if match != "number":
        return Item(Problem(prompt), lambda results: float(plain(str(results[0])) == plain(completion)), plain)
    gold = numbers.last_number(completion)
    if gold is None:
        raise UsageError(f"{line.where}: the completion has no number to compare; use --data.match text")
    return Item(Problem(prompt), lambda results: float(gold.same(numbers.last_number(str(results[0])))), last_value)


def plain(text: str) -> str:
    """Returns the text in lower case, with single spaces and none at the ends."""
    return " ".join(text.split()).lower()


def last_value(text: str) -> Fraction | None:
    """Returns the value of the last number in a text, by which votes are counted; None if there is none."""
    found = numbers.last_number(text)
    return None if found is None else found.value


def _checked(task: Task, line: Line) -> Item:
    try:
        return from_record(task, line.record)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{line.where}: {error}") from None
