"""Benchmarks ready to run, by name: their records, examples and protocol, in order."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import POCKET
from experiments.data import find
from experiments.data import load as sources
from experiments.data.jobs import find_task
from experiments.pocket import benchmarks as pocket
from experiments.tasks import PROTOCOLS, TASKS, Record, Request, Task, fewshot
from experiments.tasks.subjects import GROUP_OF

PART = re.compile(r"(?i)(^|[^a-z])(first|last|head|tail|sample|subset|part|mini|small|tiny)s?[-_]?\d*[^a-z]")
"""In the name of a file that holds a part of a split."""


class Part(NamedTuple):
    """Records of one line of the table: a subject of MMLU, or a whole benchmark."""

    name: str
    records: list[Record]
    shots: list[list[Record]]


class Bench(NamedTuple):
    """One benchmark under one protocol."""

    name: str
    task: Task
    parts: list[Part]
    prefix: tuple[int, ...]
    protocol: str
    """One line: prompts, shots, split, prefix tokens, limit."""

    @property
    def items(self) -> list[tuple[Part, int]]:
        """Every record, as its part and its index there."""
        return [(part, index) for part in self.parts for index in range(len(part.records))]

    def requests(self, part: Part, index: int) -> list[Request]:
        """Returns what the model is asked for one record."""
        return self.task.requests(part.records[index], part.shots[index])


class Options(NamedTuple):
    """How benchmarks are asked; where a name is missing, the benchmark's own default holds."""

    data_dir: str | None = None
    shots: Mapping[str, int] = {}
    splits: Mapping[str, str] = {}
    limit: int | None = None
    """Records of each part, the first ones."""
    prefix: tuple[int, ...] | None = None
    chain: str | None = None
    """As `data.chain`."""


def load(names: Sequence[str], options: Options) -> list[Bench]:
    """Loads the benchmarks of these names, in order.

    Args:
      names: as in `tasks.PROTOCOLS`, after "pocket:" for the embedded ones; mmlu_SUBJECT for one subject.
      options: how they are asked.

    Returns:
      The benchmarks.

    Raises:
      UsageError: unknown name, no data.dir, a missing split, too few examples, or a wrong record, in one line.
    """
    for option in (*options.shots, *options.splits):
        if option not in names:
            raise UsageError(f"a setting for {option!r}, which is not among the tasks: {', '.join(names)}")
    return [_bench(name, options) for name in names]


def _bench(name: str, options: Options) -> Bench:
    task, subject = _task(name, options.chain)
    embedded = name.startswith(POCKET)
    shots = options.shots.get(name, 0 if embedded else task.shots)
    split = options.splits.get(name, "test" if embedded else task.split)
    records = _records(name, task, split, options)
    pool = _pool(name, task, embedded, options) if shots else []
    parts = []
    for part in dict.fromkeys(_part(record, task) for record in records):
        mine = [record for record in records if _part(record, task) == part][: options.limit]
        try:
            chosen = fewshot.choose(task.fewshot, [r for r in pool if _part(r, task) == part], mine, shots)
            parts.append(Part(part, mine, chosen))
            task.requests(mine[0], chosen[0])
        except ValueError as error:
            raise UsageError(f"{name}, {part}: {error}; use --shots {name}=N") from None
    parts = [part for part in parts if subject in (None, part.name)]
    if not parts:
        raise UsageError(f"{name}: split {split} has no records of this subject")
    prefix = task.prefix if options.prefix is None else options.prefix
    told = split if embedded else f"{split}{_partial(_dataset(task), split, str(options.data_dir))}"
    return Bench(name, task, parts, prefix, _describe(task, shots, told, prefix, options.limit, parts, embedded))


def _task(name: str, chain: str | None = None) -> tuple[Task, str | None]:
    """The task of a name, and the one subject to keep if the name says one (mmlu_astronomy)."""
    plain = name.removeprefix(POCKET)
    if plain.startswith("mmlu_") and plain.removeprefix("mmlu_") in GROUP_OF:
        return find_task("mmlu", chain), plain.removeprefix("mmlu_")
    if plain not in PROTOCOLS:
        known = [*PROTOCOLS, *(f"{POCKET}{task}" for task in PROTOCOLS), "mmlu_SUBJECT"]
        raise UsageError(f"tasks: no task {name!r}{suggest(name, known)} (tasks: {', '.join(known)})")
    if plain in TASKS:
        return find_task(plain, chain), None
    if chain:
        raise UsageError(f"data.chain: {name} has no phrasings of answers after a chain; use mmlu")
    return PROTOCOLS[plain], None


def _dataset(task: Task) -> str:
    return task.name.removesuffix("_rwkv")


def _records(name: str, task: Task, split: str, options: Options) -> list[Record]:
    if name.startswith(POCKET):
        return list(pocket.load(_dataset(task), split))
    if options.data_dir is None:
        raise UsageError(f"{name}: say where its files lie with --data.dir, or use {POCKET}{_dataset(task)}")
    return [line.record for line in sources.load(_dataset(task), split, options.data_dir)]


def _pool(name: str, task: Task, embedded: bool, options: Options) -> list[Record]:
    """The records that shots are drawn from."""
    try:
        return _records(name, task, "train" if embedded else task.fewshot.split, options)
    except UsageError as error:
        text = str(error).removesuffix(" or choose another split")
        raise UsageError(f"{text}; shots come from it, --shots {name}=0 needs none") from None


def _partial(dataset: str, split: str, data_dir: str) -> str:
    """The names of the split's files in brackets, if they say that they hold a part of it."""
    names = [path.name for path in find.files(dataset, split, Path(data_dir).expanduser())]
    return f" ({', '.join(names)})" if dataset != "mmlu" and any(map(PART.search, names)) else ""


def _part(record: Record, task: Task) -> str:
    return record.get("subject", task.name)


def _describe(
    task: Task, shots: int, split: str, prefix: tuple[int, ...], limit: int | None, parts: list[Part], embedded: bool
) -> str:
    words = [task.protocol + (", pocket world" if embedded else "")]
    words.append(f"{shots} shots" + (f" ({task.fewshot.split}, {task.fewshot.sampler})" if shots else ""))
    words.append(f"split {split}")
    words.append(f"prefix tokens {list(prefix) or 'none'}")
    words.append(f"the first {limit} records of each part" if limit else "all records")
    if _dataset(task) == "mmlu" and not embedded:
        words.append(f"{len(parts)} of {len(GROUP_OF)} subjects")
    return ", ".join(words)
