"""What is in a file of records: counts of records, turns and tokens, and of everything that is wrong with them."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.config.data_info import ExamplesConfig
from experiments.config.overrides import UsageError
from experiments.data import batching, jsonl, text_file
from experiments.data.jsonl import ALPACA, MESSAGES, SHAREGPT, TEXT, Line, Pair
from experiments.tasks.types import Record
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.objective import boundary_merges

T = TypeVar("T")
Watch = Callable[[Iterable[T], int], Iterable[T]]
"""(items, about how many) -> the same items, their progress shown."""

FORM_NAMES = {
    MESSAGES: "messages",
    SHAREGPT: "ShareGPT conversations",
    ALPACA: "Alpaca instructions",
    jsonl.PAIR: "prompts with completions",
}
CONVERSATIONS, PLAIN = "conversations in text", "plain texts"
BEGINS_AS_TALK = re.compile(r"\s*(User|Human|Q|Question|Instruction):")
MERGED_OF = 1000
"""Prompts whose boundary to the completion is looked at, the first ones."""
TOKENS_A_STEP, LONGEST, LARGEST = 8192, 4096, 16
"""Of what is suggested: tokens of a step as by default, the longest example, the largest batch."""
STRANGE = {
    "replacement characters (U+FFFD), left by a wrong decoding": re.compile("\ufffd"),
    "UTF-8 that was read as Latin-1 or Windows-1252 (as Ã© for é)": re.compile("[ÃÂ][\x80-\xbf]|â€|ï»¿|ã[\x80-\xbf]"),
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
}
"""Characters that mostly come of a wrong encoding."""


class Seen(NamedTuple):
    """How often something was met, and where and how first."""

    count: int
    first: str


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of records."""

    total: int
    learnt: int
    mean: float
    median: int
    most: int
    """95 % of the records have at most as many."""
    longest: int


@dataclasses.dataclass(frozen=True)
class Cut:
    """What does not fit `max_length`."""

    max_length: int
    records: int
    tokens: int
    """That are lost."""
    split: int
    """Records that become several examples and lose nothing."""
    examples: int
    padded: float
    """Mean positions of an example with its padding."""


@dataclasses.dataclass(frozen=True)
class Info:
    """All about a file."""

    file: str
    records: int
    """Sound ones."""
    size: int
    """Bytes."""
    forms: dict[str, int]
    answers: int
    """Of conversations."""
    most_answers: int
    """Of one conversation."""
    roles: dict[str, int]
    """Messages of each role."""
    tokens: Lengths | None
    """None without a sound record."""
    cut: Cut | None
    suggested: dict[str, int]
    """By setting."""
    broken: dict[str, Seen]
    """Lines and records that `rwkv7 tune` refuses, by kind."""
    repeated: Seen
    empty_answers: Seen
    """Among what is refused, or blank."""
    without_loss: Seen
    """Conversations without an answer."""
    unlike: Seen
    """Texts that look like a conversation without an answer, and are learnt whole."""
    strange: dict[str, Seen]
    unused: dict[str, int]
    """Keys that are not read."""
    merged: Seen
    """Prompts that would share a token with the completion, among the first `MERGED_OF`."""


class _Counts:
    """What is met while the records are read."""

    def __init__(self) -> None:
        self.forms, self.roles, self.unused = Counter[str](), Counter[str](), Counter[str]()
        self.met: dict[str, Seen] = {}
        self.pairs: dict[int, str] = {}
        """Hash of a record -> where it stands."""
        self.answers: list[int] = []
        self.lengths: list[tuple[int, int, int, int]] = []
        """(tokens, learnt, lost, examples) of each record."""
        self.padded: list[int] = []
        self.whole: list[int] = []
        """Positions of records that are not split where they are long."""
        self.prompts = 0

    def meet(self, kind: str, first: str) -> None:
        """Counts something."""
        before = self.met.get(kind)
        self.met[kind] = Seen(before.count + 1, before.first) if before else Seen(1, first)

    def seen(self, kind: str) -> Seen:
        """Returns how often."""
        return self.met.get(kind, Seen(0, ""))

    def among(self, prefix: str) -> dict[str, Seen]:
        """Returns what was met of several kinds, most often first."""
        found = {kind.removeprefix(prefix): seen for kind, seen in self.met.items() if kind.startswith(prefix)}
        return dict(sorted(found.items(), key=lambda item: -item[1].count))


def examine(
    path: str | Path, config: ExamplesConfig, tokenizer: Tokenizer, watch: Watch = lambda items, count: items
) -> Info:
    """Reads a whole file, whatever is wrong with single lines.

    Args:
      path: the file.
      config: how examples are made of it.
      tokenizer: counts tokens.
      watch: shows the progress.

    Returns:
      All that was found.

    Raises:
      UsageError: one line: there is no such file, or it holds no records.
    """
    path = jsonl.user_path(path)
    text, wrong = text_file.read_sound_lines(path)
    counts = _Counts()
    for message in wrong:
        counts.meet("broken not UTF-8", message)
    for item in watch(jsonl.scan(path, text), text.count("\n") + 1):
        if isinstance(item, UsageError):
            counts.meet(f"broken {_kind(str(item), path)}", str(item))
        else:
            _record(counts, item, config, tokenizer)
    lengths = np.asarray(counts.lengths, np.int64).reshape(-1, 4)
    return Info(
        file=str(path),
        records=len(lengths),
        size=path.stat().st_size,
        forms=dict(counts.forms.most_common()),
        answers=sum(counts.answers),
        most_answers=max(counts.answers, default=0),
        roles=dict(counts.roles),
        tokens=_tokens(lengths) if len(lengths) else None,
        cut=_cut(counts, lengths, config.max_length) if len(lengths) else None,
        suggested=_suggested(counts, len(lengths)) if len(lengths) else {},
        broken=counts.among("broken "),
        repeated=counts.seen("repeated"),
        empty_answers=counts.seen("empty answer"),
        without_loss=counts.seen("without loss"),
        unlike=counts.seen("unlike"),
        strange=counts.among("strange "),
        unused=dict(counts.unused.most_common()),
        merged=counts.seen("merged"),
    )


def _record(counts: _Counts, line: Line, config: ExamplesConfig, tokenizer: Tokenizer) -> None:
    """Counts one record."""
    if any(not text.strip() for text in _answers(line.record)):
        counts.meet("empty answer", line.where)
    try:
        pair = jsonl.to_pair(line, config.template)
        if config.learn == "answers":
            jsonl.check_answers(pair, line.where)
    except UsageError as error:
        kind = _kind(str(error), line.where)
        counts.meet(f"broken {kind}", str(error))
        if "nothing to learn" in str(error) and "empty" not in str(error):
            counts.meet("without loss", line.where)
        return
    keys, parts = jsonl.form(line.record), jsonl.exchanges_of(pair)
    counts.forms[FORM_NAMES.get(keys) or (CONVERSATIONS if parts else PLAIN)] += 1
    counts.unused.update(jsonl.unused_keys([line]))
    counts.roles.update(_roles(line.record) if keys in (MESSAGES, SHAREGPT) else ())
    if parts:
        counts.answers.append(sum(bool(part.answer) for part in parts))
    _characters(counts, pair, line.where, tokenizer, has_turns=bool(parts))
    examples = batching.encode_one(tokenizer, pair, config.max_length, config.learn)
    heads = len(examples) - 1 if keys == TEXT and not parts else 0
    lost = sum(example.truncated for example in examples)
    tokens = sum(len(example.tokens) for example in examples) + lost - heads
    learnt = sum(
        len(example.tokens) - example.completion_start if example.learnt is None else int(example.learnt.sum())
        for example in examples
    )
    counts.lengths.append((tokens, learnt, lost, len(examples)))
    counts.padded += [padded_length(len(example.tokens) - 1) for example in examples]
    if keys != TEXT or parts:
        counts.whole.append(tokens - 1)


def _characters(counts: _Counts, pair: Pair, where: str, tokenizer: Tokenizer, *, has_turns: bool) -> None:
    """Counts what the text of a record shows."""
    text = pair.prompt + pair.completion
    known = counts.pairs.setdefault(hash(pair), where)
    if known is not where:
        counts.meet("repeated", f"{where} is {known}")
    if not text.isascii() or not text.isprintable():
        for kind, pattern in STRANGE.items():
            if found := pattern.search(text):
                counts.meet(f"strange {kind}", f"{where}, {text[max(0, found.start() - 10) : found.end() + 10]!r}")
    if not pair.prompt and not has_turns and BEGINS_AS_TALK.match(text):
        counts.meet("unlike", where)
    if pair.prompt:
        counts.prompts += 1
        if counts.prompts <= MERGED_OF and boundary_merges(tokenizer, *pair):
            counts.meet("merged", where)


def _kind(message: str, where: str | Path) -> str:
    """A message without the places and names in it, the same for all of its kind."""
    text = message.removeprefix(str(where)).lstrip(":0123456789 ")
    text = re.sub(r"^record \d+: ", "", text)
    text = re.split(r" \(|; ", text)[0]
    return re.sub(r"\d+|'[^']*'", "…", text)[:120]


def _answers(record: Record) -> Iterator[str]:
    """The texts of a record that are to be learnt, as far as they are texts."""
    for key in ("completion", "output"):
        if isinstance(value := record.get(key), str):
            yield value
    for message in _messages(record):
        if message.get("role", message.get("from")) in ("assistant", "gpt", "bot", "model"):
            content = message.get("content", message.get("value"))
            if isinstance(content, str) and not message.get("tool_calls"):
                yield content


def _messages(record: Record) -> list[dict[str, object]]:
    found = record.get("messages") or record.get("conversations")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _roles(record: Record) -> list[str]:
    return [str(one.get("role", one.get("from"))) for one in _messages(record)]


def _tokens(lengths: np.ndarray) -> Lengths:
    tokens, learnt = lengths[:, 0], lengths[:, 1]
    median, most = (int(np.quantile(tokens, part, method="inverted_cdf")) for part in (0.5, 0.95))
    return Lengths(int(tokens.sum()), int(learnt.sum()), float(tokens.mean()), median, most, int(tokens.max()))


def _cut(counts: _Counts, lengths: np.ndarray, max_length: int) -> Cut:
    lost, parts = lengths[:, 2], lengths[:, 3]
    return Cut(
        max_length=max_length,
        records=int((lost > 0).sum()),
        tokens=int(lost.sum()),
        split=int(((parts > 1) & (lost == 0)).sum()),
        examples=int(parts.sum()),
        padded=float(np.mean(counts.padded)),
    )


def _suggested(counts: _Counts, records: int) -> dict[str, int]:
    """A length that keeps 99 % of the records whole, and as many examples as make the default's tokens a step."""
    longest = int(np.quantile(counts.whole, 0.99, method="inverted_cdf")) if counts.whole else 512
    if counts.whole and max(counts.whole) <= 1.5 * longest:
        longest = max(counts.whole)
    length = min(LONGEST, padded_length(longest))
    most = min(LARGEST, TOKENS_A_STEP // length, records)
    return {"data.max_length": length, "data.batch_size": 1 << (most.bit_length() - 1)}
