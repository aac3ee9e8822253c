"""Benchmarks run on several initial states side by side, portion by portion."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.evaluation.suite import Bench, Part
from experiments.reporting.result_store import Sample, Store
from experiments.tasks import Generate, Loglikelihood
from rwkv7_jax import State
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.greedy import Generator, Prompt
from rwkv7_jax.inference.scoring import Forker, Tick
from rwkv7_jax.language_model import LanguageModel

PORTION = 512
"""Records between two writes to disk, a quarter where answers are generated. Fixed, so that a resumed evaluation
computes the same batches."""


class Engine:
    """A model, initial states by name, and how much of it at once."""

    def __init__(self, lm: LanguageModel, states: dict[str, State], batch_size: int, max_new_tokens: int):
        self.lm, self.names, self.states = lm, list(states), list(states.values())
        self.forker = Forker(lm.model, lm.params, max(batch_size, len(states)))
        self.encoder, self.max_new_tokens = Encoder(lm.tokenizer), max_new_tokens
        self._generator: Generator | None = None

    @property
    def generator(self) -> Generator:
        """Made when first needed: it holds the weights once more, in the layout for decoding."""
        self._generator = self._generator or Generator(self.lm.model, self.lm.params, self.lm.tokenizer, self.forker)
        return self._generator

    def run(self, bench: Bench, store: Store, tick: Tick) -> list[Sample]:
        """All samples of a benchmark, those in the store not computed again. `tick` gets records x states done."""
        samples = []
        for key, items in portions(bench):
            if key not in store.done:
                store.add(key, self.samples(bench, items, tick))
            else:
                tick(len(items) * len(self.names))
            samples += store.done[key]
        return samples

    def samples(self, bench: Bench, items: Sequence[tuple[Part, int]], tick: Tick = lambda count: None) -> list[Sample]:
        """One sample for each state and record: the answers to its requests, and its scores."""
        requests = [bench.requests(*item) for item in items]
        answers = self._answers(bench, requests, tick)
        rows = []
        for state, name in enumerate(self.names):
            for (part, index), given in zip(items, answers[state], strict=True):
                scores = bench.task.score(part.records[index], given)
                rows.append({"part": part.name, "index": index, "state": name, "results": given, "scores": scores})
        return rows

    def _answers(self, bench: Bench, requests: list[list[Any]], tick: Tick) -> list[list[list[Any]]]:
        """[state][record][request] -> log-likelihood or text."""
        flat = [
            (state, row, one) for state in range(len(self.names)) for row, many in enumerate(requests) for one in many
        ]
        out: list[list[list[Any]]] = [[[] for _ in requests] for _ in self.names]
        count = _per_record(requests, tick)
        chosen = [one for one in flat if isinstance(one[2], Loglikelihood)]
        asked = [self.encoder.pair(one.context, one.continuation, bench.prefix, state) for state, _, one in chosen]
        for (state, row, _), answer in zip(chosen, self.forker.score(asked, self.states, count), strict=True):
            out[state][row].append(answer.log_likelihood)
        chosen = [one for one in flat if isinstance(one[2], Generate)]
        if chosen:
            prompts = [Prompt(self.encoder.prompt(one.context, bench.prefix), state) for state, _, one in chosen]
            stops, limit = chosen[0][2].stop, self.max_new_tokens
            texts = self.generator.answers(prompts, self.states, stops, limit, count)
            for (state, row, _), text in zip(chosen, texts, strict=True):
                out[state][row].append(text)
        return out


def portions(bench: Bench) -> Iterator[tuple[str, list[tuple[Part, int]]]]:
    """Consecutive records, and a key for each portion."""
    items = bench.items
    generated = isinstance(bench.requests(*items[0])[0], Generate)
    size = PORTION // 4 if generated else PORTION
    for begin in range(0, len(items), size):
        yield f"{bench.name}/{begin}", items[begin : begin + size]


def _per_record(requests: list[list[Any]], tick: Tick) -> Tick:
    """A counter of requests that passes on whole records; all records have about as many requests."""
    share = len(requests) / max(1, sum(map(len, requests)))
    seen = [0]

    def count(done: int) -> None:
        before, seen[0] = seen[0], seen[0] + done
        tick(round(seen[0] * share) - round(before * share))

    return count
