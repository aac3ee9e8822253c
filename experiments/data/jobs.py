"""What a run tunes on: one job for each pocket benchmark, or one for a local file."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import POCKET, RunConfig, check_tasks, digest, plain_name
from experiments.data import find
from experiments.data import load as sources
from experiments.data.jsonl import Line, Pair, hold_out, read_lines, read_pairs, to_pair
from experiments.pocket import benchmarks
from experiments.tasks import TASKS, Record, Task

R = TypeVar("R")


class Job(NamedTuple):
    """One task: records to tune on, records held out for the loss, and those of a benchmark to be scored."""

    name: str
    train: list[Pair]
    held_out: list[Pair]
    task: Task | None = None
    records: Sequence[Record] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all the data."""
        return digest([self.name, self.train, self.held_out, list(self.records)])


def load_jobs(config: RunConfig) -> list[Job]:
    """The jobs of a run, in order.

    Raises:
      UsageError: unknown benchmark, or whatever is wrong with a file, in one line.
    """
    if config.data.train and config.data.tasks:
        return [_from_records(find_task(config.data.tasks[0]), config)]
    if config.data.train:
        return [_from_pairs(config)]
    check_tasks(config.data)
    return [
        (_from_benchmark if name.startswith(POCKET) else _from_folder)(find_task(name), config)
        for name in config.data.tasks
    ]


def find_task(name: str) -> Task:
    """The benchmark of this name.

    Raises:
      UsageError: there is none.
    """
    plain = plain_name(name)
    if plain not in TASKS:
        known = [*TASKS, *(f"{POCKET}{task}" for task in TASKS)]
        raise UsageError(f"data.tasks: no task {name!r}{suggest(name, known)} (tasks: {', '.join(known)})")
    return TASKS[plain]


def _from_benchmark(task: Task, config: RunConfig) -> Job:
    """A pocket benchmark."""
    train = benchmarks.load(task.name, "train")
    return _job(task, train, benchmarks.load(task.name, config.evaluate.split), config)


def _from_folder(task: Task, config: RunConfig) -> Job:
    """A real benchmark: tuned on its training split (of MMLU the development one where there is no other), measured on
    the split that is scored in public; with `evaluate.split` validation on a held-out part of the training split."""
    folder = str(config.data.dir)
    split = "dev" if task.name == "mmlu" and "train" not in find.splits("mmlu", Path(folder).expanduser()) else "train"
    train = [line.record for line in sources.load(task.name, split, folder)]
    if config.evaluate.split == "validation":
        return _job(task, *hold_out(train, config.data.validation_fraction, config.seed), config)
    scored = [line.record for line in sources.load(task.name, task.split, folder)]
    random.Random(config.seed).shuffle(scored)
    return _job(task, train, scored, config)


def _from_records(task: Task, config: RunConfig) -> Job:
    """A benchmark from local files in its public record schema."""

    def check(line: Line) -> Record:
        try:
            task.to_example(line.record)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UsageError(f"{line.where}: {error}") from None
        return line.record

    return _job(task, *_split([check(line) for line in read_lines(str(config.data.train))], check, config), config)


def _from_pairs(config: RunConfig) -> Job:
    """A user's own file of prompts and completions, or text."""
    train, held_out = _split(read_pairs(str(config.data.train)), to_pair, config)
    return Job("jsonl", train[: config.data.max_train], held_out[: config.evaluate.max_records])


def _split(records: list[R], read: Callable[[Line], R], config: RunConfig) -> tuple[list[R], list[R]]:
    """Training and held-out records: the validation file, or a part of the training file."""
    if config.data.validation:
        return records, [read(line) for line in read_lines(config.data.validation)]
    return hold_out(records, config.data.validation_fraction, config.seed)


def _job(task: Task, train: Sequence[Record], held_out: Sequence[Record], config: RunConfig) -> Job:
    """Both parts as examples, cut to their numbers."""
    records = held_out[: config.evaluate.max_records]
    examples = [Pair(*task.to_example(record)) for record in train[: config.data.max_train]]
    return Job(task.name, examples, [Pair(*task.to_example(record)) for record in records], task, records)
