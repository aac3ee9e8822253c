"""Text, benchmark records and the tokenizer of the pocket world, as files."""

import sys
from collections.abc import Sequence
from itertools import islice

from experiments.config.commands import PocketBenchmark, PocketText, PocketTokenizer
from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import POCKET
from experiments.pocket import benchmarks
from experiments.pocket.text import documents
from experiments.pocket.vocab import VOCAB_SIZE, build_tokenizer
from experiments.reporting.json_text import json_text
from experiments.tasks import TASKS
from rwkv7_jax.checkpoint.files import write_text


def run(config: PocketText | PocketBenchmark | PocketTokenizer) -> int:
    """Writes what the settings name; returns the exit status."""
    if isinstance(config, PocketText):
        return _write(list(islice(documents(config.seed), config.n)), config.output)
    if isinstance(config, PocketTokenizer):
        return _write([build_tokenizer(config.size or VOCAB_SIZE).to_str(pretty=True)], config.output)
    name = config.task.removeprefix(POCKET)
    if name not in TASKS or name == config.task:
        known = [f"{POCKET}{task}" for task in TASKS]
        near = f"; did you mean {POCKET}{name}?" if name in TASKS else suggest(config.task, known)
        raise UsageError(f"task: no pocket benchmark {config.task!r}{near} ({', '.join(known)})")
    records = benchmarks.load(name, config.split, config.seed)
    return _write([json_text(record) for record in records], config.output)


def _write(lines: Sequence[str], output: str | None) -> int:
    text = "".join(f"{line}\n" for line in lines)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)
    return 0
