"""Benchmarks run on several initial states side by side, portion by portion."""

import math
from collections.abc import Iterator, Sequence

from experiments.evaluation.answering import Answerer, StateRequest, is_generated, no_tick
from experiments.evaluation.suite import Bench, Part
from experiments.reporting.result_store import Sample, Store
from experiments.tasks import Request
from experiments.tasks.types import Result
from rwkv7_jax import State
from rwkv7_jax.inference.scoring import PrefixScorer, Tick
from rwkv7_jax.language_model import LanguageModel

PORTION = 512
"""Records between two writes to disk, a quarter where answers are generated. Fixed, so that a resumed evaluation
computes the same batches."""


class Engine:
    """A model, initial states by name, and how much of it at once."""

    def __init__(self, lm: LanguageModel, states: dict[str, State], batch_size: int, max_new_tokens: int):
        self.names, self.states, self.max_new_tokens = list(states), list(states.values()), max_new_tokens
        self.answerer = Answerer(lm, max(batch_size, len(states)))

    @property
    def scorer(self) -> PrefixScorer:
        """What feeds the prompts; its `cost` counts their tokens."""
        return self.answerer.scorer

    def run(self, bench: Bench, store: Store, tick: Tick) -> list[Sample]:
        """Returns all samples of a benchmark, sound ones in the store not computed again.

        tick: gets records x states done.
        """
        self.answerer.check_prefix(bench.prefix)
        samples = []
        for key, items in portions(bench):
            if not _are_sound(store.done.get(key)):
                store.add(key, self.samples(bench, items, tick))
            else:
                tick(len(items) * len(self.names))
            samples += store.done[key]
        return samples

    def samples(self, bench: Bench, items: Sequence[tuple[Part, int]], tick: Tick = no_tick) -> list[Sample]:
        """Returns one sample for each state and record: the answers to its requests, and its scores."""
        requests = [bench.requests(*item) for item in items]
        answers = self._answers(bench, requests, tick)
        samples: list[Sample] = []
        for state, name in enumerate(self.names):
            for (part, index), given in zip(items, answers[state], strict=True):
                scores = bench.task.score(part.records[index], given)
                samples.append({"part": part.name, "index": index, "state": name, "results": given, "scores": scores})
        return samples

    def _answers(self, bench: Bench, requests: list[list[Request]], tick: Tick) -> list[list[list[Result]]]:
        """[state][record][request] -> log-likelihood or text."""
        flat = [StateRequest(one, state) for state in range(len(self.names)) for many in requests for one in many]
        count = _per_record(requests, tick)
        found = iter(self.answerer.answer(flat, self.states, self.max_new_tokens, bench.prefix, count))
        return [[[next(found) for _ in many] for many in requests] for _ in self.names]


def _are_sound(samples: Sequence[Sample] | None) -> bool:
    """Whether there are samples, and none from results that are not finite, which earlier versions kept."""
    results = [value for one in samples or () for value in one["results"]]
    return samples is not None and all(isinstance(value, str) or math.isfinite(value) for value in results)


def portions(bench: Bench) -> Iterator[tuple[str, list[tuple[Part, int]]]]:
    """Yields consecutive records, with a key for each portion."""
    items = bench.items
    size = PORTION // 4 if is_generated(bench.requests(*items[0])[0]) else PORTION
    for begin in range(0, len(items), size):
        yield f"{bench.name}/{begin}", items[begin : begin + size]


def _per_record(requests: list[list[Request]], tick: Tick) -> Tick:
    """A counter of requests that passes on whole records; all records have about as many requests."""
    share = len(requests) / max(1, sum(map(len, requests)))
    seen = [0]

    def count(done: int) -> None:
        before, seen[0] = seen[0], seen[0] + done
        tick(round(seen[0] * share) - round(before * share))

    return count
