"""From records to batches: token examples, length buckets, a deterministic Grain pipeline that can be resumed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax

from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig
from experiments.data.jsonl import Pair, Talk
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.conversations import Learn, encode_record
from state_tuning.core.objective import Batch, Example, collate

if TYPE_CHECKING:
    import grain


COMPILATION_FLOPS = {"cpu": 1.5e11}
"""Work that takes as long as to compile and trace one more length, by backend."""
COMPILATION_FLOPS_ELSEWHERE = 1e15
ONE_CHUNK = 32
"""Tokens that the WKV op reads at once on a CPU."""


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair], config: DataConfig) -> list[Example]:
    """Returns token examples of at most `config.max_length` positions, those of all records in one list.

    Raises:
      UsageError: there is no pair, or a conversation has no answer.
    """
    return [example for part in encode_each(tokenizer, pairs, config) for example in part]


def encode_each(tokenizer: Tokenizer, pairs: Sequence[Pair], config: DataConfig) -> list[list[Example]]:
    """Returns the token examples of each record, of at most `config.max_length` positions.

    Plain text (a pair without prompt) longer than that is cut into windows, a conversation between its exchanges; a
    longer prompt loses its oldest tokens, and a longer completion its end.

    Raises:
      UsageError: there is no pair, or a conversation has no answer.
    """
    if not pairs:
        raise UsageError("no records to encode")
    try:
        return [encode_one(tokenizer, pair, config.max_length, config.learn) for pair in pairs]
    except ValueError as error:
        raise UsageError(str(error)) from None


def encode_one(tokenizer: Tokenizer, pair: Pair, max_length: int, learn: Learn) -> list[Example]:
    """Returns the token examples of one record, as `encode_each`. Raises: ValueError in one line."""
    return encode_record(tokenizer, *pair, max_length, learn, pair.answers if isinstance(pair, Talk) else None)


def buckets(examples: Sequence[Example], batch_size: int) -> dict[int, list[Example]]:
    """Returns the examples by padded length, short to long.

    A bucket of less than a batch or an eighth of all joins the next longer one; the longest, if less than a batch, the
    next shorter.
    """
    least = max(batch_size, len(examples) // 8)
    by_length: dict[int, list[Example]] = {}
    for example in examples:
        by_length.setdefault(padded_length(len(example.tokens) - 1), []).append(example)
    merged: dict[int, list[Example]] = {}
    waiting: list[Example] = []
    for length in sorted(by_length):
        waiting = waiting + by_length[length]
        if len(waiting) >= least:
            merged[length], waiting = waiting, []
    if waiting:
        before = merged.pop(max(merged)) if merged and len(waiting) < batch_size else []
        merged[max(by_length)] = before + waiting
    return merged


def few_lengths(places: Mapping[int, float], flops: float) -> tuple[int, ...]:
    """Returns the lengths worth a compiled program each; batches of the others are padded to the next longer one.

    Lengths of one chunk of the WKV op stay: longer batches are rounded otherwise. Padding beyond them changes no bit on
    a CPU.

    Args:
      places: padded length -> places of all batches of that length.
      flops: of a place.
    """
    compilation = COMPILATION_FLOPS.get(jax.default_backend(), COMPILATION_FLOPS_ELSEWHERE) / flops
    fixed, free = ([n for n in sorted(places) if (n <= ONE_CHUNK) == short] for short in (True, False))

    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    """(places of padding and compilations, lengths) for the first ones of `free`."""
    for i, length in enumerate(free):
        padding = [sum(places[n] * (length / n - 1) for n in free[j:i]) for j in range(i + 1)]
        best.append(min((best[j][0] + compilation + padding[j], (*best[j][1], length)) for j in range(i + 1)))
    return (*fixed, *best[-1][1])


def step_places(examples: Sequence[Example], batch_size: int, steps: int) -> dict[int, float]:
    """Returns the places of the batches of each length in so many training steps."""
    groups = buckets(examples, batch_size)
    return {length: length * batch_size * steps * len(group) / len(examples) for length, group in groups.items()}


def _at_least(length: int, lengths: Sequence[int]) -> int:
    return next((one for one in sorted(lengths) if one >= length), length)


def training_batches(
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    lengths: Sequence[int] = (),
) -> "grain.DatasetIterator[Batch]":
    """Returns an endless Grain iterator, each batch from one length bucket, buckets in proportion to their examples.

    Args:
      examples: all of them.
      batch_size: examples a batch.
      seed: the order depends on it alone.
      rows: make only these rows of each batch, those of this process's devices; None is all.
      lengths: that batches are padded to, see `few_lengths`; which examples a batch has does not depend on them.

    Returns:
      The iterator; `get_state()` and `set_state()` save and restore its position.
    """
    import grain

    groups = buckets(examples, batch_size)

    def pipeline(index: int, length: int, group: list[Example]) -> grain.MapDataset[Batch]:
        source = grain.MapDataset.source(group).seed(seed + index).shuffle().repeat()
        padded_to = _at_least(length, lengths)
        mine = range(batch_size) if rows is None else rows
        return source.batch(
            batch_size, drop_remainder=True, batch_fn=lambda batch: collate([batch[i] for i in mine], padded_to)
        )

    parts = [pipeline(index, *item) for index, item in enumerate(groups.items())]
    weights = [len(group) / len(examples) for group in groups.values()]
    dataset = grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def padded(examples: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Yields every example once: (indices into `examples`, batch), rows filled up with padding, few shapes."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].tokens), i))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        length = padded_length(len(examples[chosen[-1]].tokens) - 1)
        yield chosen, collate([examples[i] for i in chosen], length, batch_size)
