"""Answers to the requests of benchmark tasks: log-likelihoods by forking states, texts by greedy decoding."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.tasks import Generate, Loglikelihood, Request
from experiments.tasks.types import Result
from rwkv7_jax import State
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.greedy import GreedyGenerator, Prompt
from rwkv7_jax.inference.prefix_tree import MIN_SAVED
from rwkv7_jax.inference.scoring import PrefixScorer, Tick
from rwkv7_jax.language_model import LanguageModel


def no_tick(count: int) -> None:
    """Ignores the number of sequences that are done."""


class StateRequest(NamedTuple):
    """A request, answered from the initial state number `state`."""

    request: Request
    state: int = 0


class Answerer:
    """Answers requests on one model; `scorer.cost` counts the tokens that were fed.

    batch_size: sequences at once, at least as many as there are initial states. min_saved: see `prefix_tree`.
    """

    def __init__(self, lm: LanguageModel, batch_size: int, min_saved: int = MIN_SAVED):
        self.lm, self.encoder = lm, Encoder(lm.tokenizer)
        self.scorer = PrefixScorer(lm.model, lm.params, batch_size, min_saved)
        self._generator: GreedyGenerator | None = None

    @property
    def generator(self) -> GreedyGenerator:
        """Made when first needed: it holds the weights once more, in the layout for decoding."""
        self._generator = self._generator or GreedyGenerator(
            self.lm.model, self.lm.params, self.lm.tokenizer, self.scorer
        )
        return self._generator

    def check_prefix(self, prefix: Sequence[int]) -> None:
        """Refuses prefix tokens that the model does not have, whose embedding would be NaN.

        Raises:
          ValueError: naming the first.
        """
        size = self.lm.model.config.vocab_size
        if outside := [token for token in prefix if not 0 <= token < size]:
            raise ValueError(f"prefix token {outside[0]} is outside of the model's vocabulary of {size}")

    def answer(
        self,
        requests: Sequence[StateRequest],
        states: Sequence[State],
        max_new_tokens: int,
        prefix: Sequence[int] = (),
        tick: Tick = no_tick,
    ) -> list[Result]:
        """Returns the answer to each request, in order: a float to a Loglikelihood, a str to a Generate.

        Args:
          requests: of any kind and state, mixed.
          states: unbatched initial states.
          max_new_tokens: tokens of the longest text.
          prefix: token ids before every context.
          tick: gets the number of requests done, batch by batch.
        """
        out: list[Result] = [0.0] * len(requests)
        by_stop: dict[tuple[str, ...], list[int]] = {}
        pairs: list[int] = []
        for i, (request, _) in enumerate(requests):
            (pairs if isinstance(request, Loglikelihood) else by_stop.setdefault(request.stop, [])).append(i)
        asked = [(one, state) for one, state in requests if isinstance(one, Loglikelihood)]
        for i, value in zip(pairs, self.log_likelihoods(asked, states, prefix, tick), strict=True):
            out[i] = value
        for stop, members in by_stop.items():
            prompts = [(requests[i].request.context, requests[i].state) for i in members]
            texts = self.texts(prompts, states, stop, max_new_tokens, prefix, tick)
            for i, text in zip(members, texts, strict=True):
                out[i] = text
        return out

    def log_likelihoods(
        self,
        requests: Sequence[tuple[Loglikelihood, int]],
        states: Sequence[State],
        prefix: Sequence[int] = (),
        tick: Tick = no_tick,
    ) -> list[float]:
        """Returns log P(continuation | context) in nats for each (request, number of its state)."""
        asked = [self.encoder.pair(one.context, one.continuation, prefix, state) for one, state in requests]
        return [answer.log_likelihood for answer in self.scorer.score(asked, states, tick)]

    def texts(
        self,
        prompts: Sequence[tuple[str, int]],
        states: Sequence[State],
        stop: Sequence[str],
        max_new_tokens: int,
        prefix: Sequence[int] = (),
        tick: Tick = no_tick,
    ) -> list[str]:
        """Returns the greedy continuation of each (context, number of its state), cut before the first stop string."""
        asked = [Prompt(self.encoder.prompt(context, prefix), state) for context, state in prompts]
        return self.generator.answers(asked, states, stop, max_new_tokens, tick)


def is_generated(request: Request) -> bool:
    """Returns whether the answer is a text."""
    return isinstance(request, Generate)
