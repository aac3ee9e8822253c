"""What is measured of a frozen model from any states: held-out losses, log-likelihoods, greedy answers, scores."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data.batching import padded
from experiments.tasks import Generate, Loglikelihood, Record, Request, Task
from rwkv7_jax import RWKV7, State
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.greedy import Generator, Prompt
from rwkv7_jax.inference.scoring import Answer, Forker, Tick
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.sharding import host
from state_tuning.core import surgery, train
from state_tuning.core.objective import Example


def _no_tick(count: int) -> None:
    """Nobody is watching."""


class Scorer(NamedTuple):
    """The model's jitted loss; make it once, states and weights are arguments."""

    nll: Callable[..., Any]
    """(params, unbatched state, Batch) -> (summed completion NLL [B] in nats, completion tokens [B])"""


def make_scorer(model: RWKV7) -> Scorer:
    """The jitted loss of a model."""
    start = train.Method(init=lambda: None, graft=surgery.broadcast)
    return Scorer(train.make_eval_step(model, train.TuneConfig(), start, per_row=True))


class Evaluator(NamedTuple):
    """A model with its scorer, rows at once, and the longest answer in tokens."""

    lm: LanguageModel
    scorer: Scorer
    batch_size: int
    max_new_tokens: int = 96
    tick: Tick = _no_tick
    """Called with the number of sequences done after each batch."""

    @property
    def forker(self) -> Forker:
        """A new one, with its own count of tokens."""
        return Forker(self.lm.model, self.lm.params, self.batch_size)

    def losses(self, state: State, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """(summed completion NLL in nats, completion tokens), float64 [N] each, in the order of `examples`."""
        nll, count = np.zeros(len(examples)), np.zeros(len(examples))
        for chosen, batch in padded(examples, self.batch_size):
            rows, tokens = host(self.scorer.nll(self.lm.params, state, batch))
            nll[chosen], count[chosen] = rows[: len(chosen)], tokens[: len(chosen)]
            self.tick(len(chosen))
        return nll, count

    def log_likelihoods(self, state: State, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """log P(continuation | context) in nats for each (context, continuation), tokens as in the harness."""
        return [answer.log_likelihood for answer in self._answers_to(state, [Loglikelihood(*pair) for pair in pairs])]

    def _answers_to(self, state: State, requests: Sequence[Loglikelihood]) -> list[Answer]:
        encoder = Encoder(self.lm.tokenizer)
        asked = [encoder.pair(request.context, request.continuation) for request in requests]
        return self.forker.score(asked, [state], self.tick)

    def answers(self, state: State, prompts: Sequence[str], stop: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy continuations, cut before the first stop string."""
        encoder = Encoder(self.lm.tokenizer)
        asked = [Prompt(encoder.prompt(prompt)) for prompt in prompts]
        generator = Generator(self.lm.model, self.lm.params, self.lm.tokenizer, self.forker)
        return generator.answers(asked, [state], stop, max_tokens, self.tick)

    def results(self, state: State, requests: Sequence[Request]) -> list[Any]:
        """The answer to each request of benchmark tasks, in order: a float to a Loglikelihood, a str to a Generate."""
        out: list[Any] = [None] * len(requests)
        pairs = [i for i, request in enumerate(requests) if isinstance(request, Loglikelihood)]
        asked = [(request.context, request.continuation) for request in requests if isinstance(request, Loglikelihood)]
        for i, value in zip(pairs, self.log_likelihoods(state, asked), strict=True):
            out[i] = value
        by_stop: dict[tuple[str, ...], list[int]] = {}
        for i, request in enumerate(requests):
            if isinstance(request, Generate):
                by_stop.setdefault(request.stop, []).append(i)
        for stop, members in by_stop.items():
            texts = self.answers(state, [requests[i].context for i in members], stop, self.max_new_tokens)
            for i, text in zip(members, texts, strict=True):
                out[i] = text
        return out

    def scores(self, state: State, task: Task, records: Sequence[Record]) -> dict[str, list[float]]:
        """Each metric of a benchmark, record by record."""
        requests = [task.requests(record) for record in records]
        answers = iter(self.results(state, [request for group in requests for request in group]))
        grouped = [[next(answers) for _ in group] for group in requests]
        rows = [task.score(*pair) for pair in zip(records, grouped, strict=True)]
        return {metric: [row[metric] for row in rows] for metric in task.metrics}
