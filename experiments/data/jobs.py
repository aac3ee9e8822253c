"""What a run tunes on: one job for each pocket benchmark, or one for a local file."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import POCKET, DataConfig, EvaluateConfig, check_tasks, digest, plain_name
from experiments.data import find
from experiments.data import load as sources
from experiments.data.jsonl import Line, Pair, check_answers, hold_out, read_lines, to_pair, unused_keys
from experiments.pocket import benchmarks
from experiments.pocket.rationales import rationale
from experiments.tasks import TASKS, Record, Task, phrasings
from experiments.tasks.chains import chained

R = TypeVar("R")


class Job(NamedTuple):
    """One task: records to tune on, records held out for the loss, and those of a benchmark to be scored."""

    name: str
    train: list[Pair]
    held_out: list[Pair]
    task: Task | None = None
    records: Sequence[Record] = ()
    notes: Sequence[str] = ()
    """What of the files is not used, one line each."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all the data."""
        return digest([self.name, self.train, self.held_out, list(self.records)])


def load_jobs(data: DataConfig, evaluate: EvaluateConfig, seed: int) -> list[Job]:
    """Reads the jobs of a run, in order.

    Args:
      data: which tasks, and where their records are.
      evaluate: which records are held out, and how many.
      seed: of splits and of the order of held-out records.

    Raises:
      UsageError: unknown benchmark, or whatever is wrong with a file, in one line.
    """
    loader = _Loader(data, evaluate, seed)
    if data.train and data.tasks:
        return [loader.from_records(find_task(data.tasks[0], data.chain))]
    if data.train:
        return [loader.from_pairs(data.train)]
    check_tasks(data)
    return [
        (loader.from_pocket if name.startswith(POCKET) else loader.from_folder)(find_task(name, data.chain))
        for name in data.tasks
    ]


def find_task(name: str, chain: str | None = None) -> Task:
    """Returns the benchmark of this name, in the exact protocol or after a chain of thought.

    Args:
      name: mmlu, gsm8k, winogrande or arc, also after pocket:.
      chain: as `data.chain`.

    Raises:
      UsageError: there is none, or no such phrasing.
    """
    plain = plain_name(name)
    if plain not in TASKS:
        known = [*TASKS, *(f"{POCKET}{task}" for task in TASKS)]
        raise UsageError(f"data.tasks: no task {name!r}{suggest(name, known)} (tasks: {', '.join(known)})")
    try:
        wanted = phrasings.chosen(chain, plain)
        if wanted == phrasings.AUTO:
            raise ValueError("auto is for rwkv7 tune and rwkv7 evaluate, which say what they choose: name it here")
        return TASKS[plain] if wanted is None else chained(plain, wanted, rationale)
    except ValueError as error:
        raise UsageError(f"data.chain: {error}") from None


def _fewer(what: str, count: int, setting: str, limit: int | None) -> list[str]:
    """A note that a setting leaves records out."""
    return [f"{limit:,} of {count:,} {what} records are used ({setting})"] if limit and limit < count else []


class _Loader(NamedTuple):
    """Makes jobs, one function for each source of records."""

    data: DataConfig
    evaluate: EvaluateConfig
    seed: int

    def from_pocket(self, task: Task) -> Job:
        """Returns the job of an embedded benchmark."""
        return self._job(task, benchmarks.load(task.name, "train"), benchmarks.load(task.name, self.evaluate.split))

    def from_folder(self, task: Task) -> Job:
        """Returns the job of a real benchmark.

        It is tuned on the training split (of MMLU on the development one where there is no other), and measured on the
        split that is scored in public; with `evaluate.split` validation on a held-out part of the training split.
        """
        folder = str(self.data.dir)
        has_train = task.name != "mmlu" or "train" in find.splits("mmlu", Path(folder).expanduser())
        train = [line.record for line in sources.load(task.name, "train" if has_train else "dev", folder)]
        if self.evaluate.split == "validation":
            return self._job(task, *hold_out(train, self.data.validation_fraction, self.seed))
        scored = [line.record for line in sources.load(task.name, task.split, folder)]
        random.Random(self.seed).shuffle(scored)
        return self._job(task, train, scored)

    def from_records(self, task: Task) -> Job:
        """Returns the job of a benchmark whose records, in the public schema, are in local files."""

        def check(line: Line) -> Record:
            try:
                task.to_example(line.record)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise UsageError(f"{line.where}: {error}") from None
            return line.record

        return self._job(task, *self._split([check(line) for line in read_lines(str(self.data.train))], check))

    def from_pairs(self, path: str) -> Job:
        """Returns the job of a user's own file of prompts and completions, or text."""
        notes: list[str] = []
        paths = [path, self.data.validation] if self.data.validation else [path]
        train, *others = [self._pairs(one, notes) for one in paths]
        train, held_out = (train, others[0]) if others else hold_out(train, self.data.validation_fraction, self.seed)
        notes += _fewer("training", len(train), "data.max_train", self.data.max_train)
        notes += _fewer("held-out", len(held_out), "evaluate.max_records", self.evaluate.max_records)
        chosen = train[: self.data.max_train], held_out[: self.evaluate.max_records]
        return Job("jsonl", *chosen, notes=notes)

    def _pairs(self, path: str, notes: list[str]) -> list[Pair]:
        """Reads a file of pairs; what of it is not used is added to the notes."""
        lines = read_lines(path)
        pairs = [to_pair(line, self.data.template) for line in lines]
        if self.data.learn == "answers":
            pairs = [check_answers(pair, line.where) for pair, line in zip(pairs, lines, strict=True)]
        if others := unused_keys(lines):
            named = ", ".join(f"{key[:40]!r} ({count})" for key, count in others.most_common(5))
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            notes.append(f"{path}: keys that are not used (records that have them): {named}{more}")
        return pairs

    def _split(self, records: list[R], read: Callable[[Line], R]) -> tuple[list[R], list[R]]:
        """Training and held-out records: the validation file, or a part of the training file."""
        if self.data.validation:
            return records, [read(line) for line in read_lines(self.data.validation)]
        return hold_out(records, self.data.validation_fraction, self.seed)

    def _job(self, task: Task, train: Sequence[Record], held_out: Sequence[Record]) -> Job:
        """Both parts as examples, cut to their numbers."""
        records = held_out[: self.evaluate.max_records]
        examples = [Pair(*task.to_example(record)) for record in train[: self.data.max_train]]
        notes = _fewer("training", len(train), "data.max_train", self.data.max_train)
        notes += _fewer("held-out", len(held_out), "evaluate.max_records", self.evaluate.max_records)
        measured = [Pair(*task.to_example(record)) for record in records]
        return Job(task.name, examples, measured, task, records, notes)
