"""What a run is told of its data before it is tuned: how much there is, how it is learnt, and what was cut."""

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.config.schema import DataConfig
from experiments.data.batching import encode_each
from experiments.data.jobs import Job
from experiments.data.jsonl import Pair, exchanges_of
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.objective import Example, boundary_merges


class Survey(NamedTuple):
    """Counts of one part of a job's data."""

    records: int
    repeated: int
    """Records that are equal to an earlier one."""
    texts: int
    """Plain texts, which are learnt whole."""
    conversations: int
    """Of which the answers alone are learnt."""
    sequences: int
    tokens: int
    learnt: int
    cut: int
    """Records that lost tokens."""
    without_end: int
    """Of these, records whose completion lost its end."""
    longest: int
    """Tokens of the longest record that was cut."""
    merged: int
    """Records whose prompt and completion would share a token if they were one text."""


def tell(job: Job, tokenizer: Tokenizer, parts: Sequence[Sequence[Example]], data: DataConfig, steps: int) -> None:
    """Prints what a job is tuned on and measured with; warnings go to stderr.

    Args:
      job: the job.
      tokenizer: of the model.
      parts: the examples of each training record.
      data: the settings that they were made with.
      steps: of tuning.
    """
    train, held_out = survey(tokenizer, job.train, parts, data.learn), held_out_survey(job, tokenizer, data)
    shared = len(set(job.train) & set(job.held_out))
    notes = [f"{job.name}: {note}" for note in job.notes]
    print("\n".join([describe(job.name, train, held_out.records, data, steps), *notes]), flush=True)
    for line in warnings(job.name, train, held_out, shared, data):
        print(f"warning: {line}", file=sys.stderr)


def tell_all(jobs: Iterable[Job], tokenizer: Tokenizer, data: DataConfig, steps: int) -> None:
    """Does `tell` for jobs whose records are not encoded yet."""
    for job in jobs:
        tell(job, tokenizer, encode_each(tokenizer, job.train, data), data, steps)


def held_out_survey(job: Job, tokenizer: Tokenizer, data: DataConfig) -> Survey:
    """Counts the held-out records of a job."""
    return survey(tokenizer, job.held_out, encode_each(tokenizer, job.held_out, data), data.learn)


def survey(tokenizer: Tokenizer, pairs: Sequence[Pair], parts: Sequence[Sequence[Example]], learn: str) -> Survey:
    """Counts what was made of records.

    Args:
      tokenizer: its end token ends every completion that is whole.
      pairs: the records.
      parts: the examples of each.
      learn: as in `DataConfig`.
    """
    examples = [example for part in parts for example in part]
    texts = [pair for pair in pairs if not pair.prompt]
    conversations = sum(bool(exchanges_of(pair)) for pair in texts) if learn == "answers" else 0
    cut = [part for part in parts if any(example.truncated for example in part)]
    return Survey(
        records=len(pairs),
        repeated=len(pairs) - len(set(pairs)),
        texts=len(texts) - conversations,
        conversations=conversations,
        sequences=len(examples),
        tokens=sum(len(example.tokens) for example in examples),
        learnt=sum(map(_learnt, examples)),
        cut=len(cut),
        without_end=sum(int(part[-1].tokens[-1]) != tokenizer.eos_id for part in cut),
        longest=max((len(one.tokens) + one.truncated for part in cut for one in part), default=0),
        merged=sum(boundary_merges(tokenizer, *pair) for pair in set(pairs) if pair.prompt),
    )


def _learnt(example: Example) -> int:
    if example.learnt is None:
        return len(example.tokens) - example.completion_start
    return int(example.learnt.sum())


def describe(name: str, train: Survey, held_out: int, data: DataConfig, steps: int) -> str:
    """Returns one line about the data of a job.

    Args:
      name: of the job.
      train: its training records.
      held_out: number of its held-out records.
      data: batch size and what is learnt.
      steps: of tuning.
    """
    passes = steps * data.batch_size / train.sequences
    often = f"{passes:.3g} passes" if passes >= 1 else f"{100 * passes:.3g} % of one pass"
    windows = f" in {train.sequences:,} sequences" if train.sequences != train.records else ""
    repeated = f" ({train.repeated:,} of them repeated)" if train.repeated else ""
    line = (
        f"{name}: {train.records:,} training records{repeated}{windows}, {train.tokens:,} tokens of which "
        f"{train.learnt:,} are learnt; {steps:,} steps of {data.batch_size} are {often}; {held_out:,} held-out records"
    )
    if train.conversations:
        other = "--data.learn all learns every token"
        line += f"; of {train.conversations:,} conversations the answers alone are learnt ({other})"
    return line


def warnings(name: str, train: Survey, held_out: Survey, shared: int, data: DataConfig) -> list[str]:
    """Returns one line for each thing that is wrong with the data of a job.

    Args:
      name: of the job.
      train: its training records.
      held_out: its held-out records.
      shared: held-out records that are equal to training ones.
      data: the longest sequence.
    """
    lines = []
    if train.cut or held_out.cut:
        ends, longest = train.without_end + held_out.without_end, max(train.longest, held_out.longest)
        lost = f"{ends:,} lost the end of the completion and its end token" if ends else "prompts lost their start"
        lines.append(
            f"{name}: {train.cut:,} of {train.records:,} training records and {held_out.cut:,} of "
            f"{held_out.records:,} held-out ones are longer than data.max_length {data.max_length} and were cut "
            f"({lost}); the longest has {longest:,} tokens: --data.max_length {longest - 1} keeps all"
        )
    if train.merged:
        lines.append(
            f"{name}: in {train.merged:,} of {train.records:,} training records the end of the prompt and the "
            "beginning of the completion would be one token if they were one text; begin the completion with the space "
            "or line end that ends the prompt"
        )
    if shared:
        lines.append(f"{name}: {shared:,} of {held_out.records:,} held-out records are training records too")
    return lines


def protocol(found: Sequence[Survey], max_length: int) -> str:
    """Says over which tokens of held-out records losses are means.

    Args:
      found: the held-out records of each job.
      max_length: as in `DataConfig`.
    """
    texts, talks, cut, ends, records = (
        sum(getattr(one, name) for one in found) for name in ("texts", "conversations", "cut", "without_end", "records")
    )
    what = "completion " if texts + talks < records else ""
    before = "no token before the prompt" if texts < records else "after an end token"
    line = f"Loss: nats per {what}token of held-out records, end token included; {before}."
    if texts and texts < records:
        line += f" Plain texts ({texts} records): every token, after an end token."
    if talks:
        line += f" Conversations ({talks} records): the answers' tokens alone."
    if cut:
        lost = f", {ends} of them without the end of the completion and its end token" if ends else ""
        line += f" {cut} of {records} held-out records were cut to data.max_length {max_length}{lost}."
    return line
