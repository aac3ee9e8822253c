"""Our model as a language model of lm-evaluation-harness (extra `lm-eval`): every task of it, with state forking.

results = lm_eval.simple_evaluate(model=ForkingLM(lm, state), tasks=["hellaswag"])
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from experiments.evaluation.answering import Answerer
from experiments.evaluation.generation_settings import Settings, read_settings
from experiments.training.metrics_log import progress_bar
from rwkv7_jax import State, zero_state
from rwkv7_jax.generation.chat_turns import turn_text
from rwkv7_jax.generation.generate import generate_text
from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.inference.prefix_tree import MIN_SAVED, ScoredSequence
from rwkv7_jax.inference.scoring import Answer, PrefixScorer, Tick
from rwkv7_jax.language_model import LanguageModel

MAX_NEW_TOKENS = 256
A = TypeVar("A", str, float, tuple[float, bool])


class Instance(Protocol):
    """A request of the harness."""

    args: tuple[Any, ...]


class ForkingLM(LM):
    """A model from one unbatched initial state, the zero state if none is given.

    prefix: token ids before every context. max_new_tokens: of a text, where a task does not say it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        state: State | None = None,
        batch_size: int = 32,
        prefix: Sequence[int] = (),
        min_saved: int = MIN_SAVED,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        super().__init__()
        self.lm, self.prefix = lm, tuple(prefix)
        self.state = zero_state(lm.model.config, None) if state is None else state
        self.max_new_tokens = max_new_tokens
        self.answerer = Answerer(lm, batch_size, min_saved)
        self.answerer.check_prefix(prefix)

    @property
    def scorer(self) -> PrefixScorer:
        """What feeds the prompts; its `cost` counts their tokens."""
        return self.answerer.scorer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Returns (log-likelihood of the continuation, whether it is the greedy one) for each request."""
        asked = [self.answerer.encoder.pair(*request.args, prefix=self.prefix) for request in requests]
        return self._kept("loglikelihood", requests, [(one[0], one[1]) for one in self._score(asked)])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Returns the log-likelihood of each whole text after the prefix (the end token if there is none)."""
        prefix = self.prefix or (self.lm.tokenizer.eos_id,)
        texts = [tuple(self.answerer.encoder.encode(request.args[0])) for request in requests]
        answers = iter(self._score([ScoredSequence((*prefix, *ids), len(prefix)) for ids in texts if ids]))
        return self._kept("loglikelihood_rolling", requests, [next(answers)[0] if ids else 0.0 for ids in texts])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns continuations up to the first `until` text.

        A greedy answer that ends makes room for the next prompt at once; sampled ones are generated batch by batch.

        Raises:
          ValueError: a generation setting that we do not have.
        """
        texts = [""] * len(requests)
        groups: dict[Settings, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(read_settings(request.args[1], self.max_new_tokens), []).append(index)
        for settings, members in groups.items():
            contexts = [requests[i].args[0] for i in members]
            with progress_bar(len(members), "generate_until", "texts") as bar:
                if settings.sampling is None:
                    found = self._greedy(contexts, settings, bar.update)
                else:
                    found = self._sampled(contexts, settings, settings.sampling, bar.update)
            for index, text in zip(members, found, strict=True):
                texts[index] = text
        return self._kept("generate_until", requests, texts)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, as the harness's cache names it."""
        return self.lm.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Returns RWKV's chat format: `User: ...` and `Assistant: ...`, an empty line between, none inside."""
        turns = [f"{turn['role'].capitalize()}: {turn_text(turn['content'])}" for turn in chat_history]
        return "\n\n".join([*turns, "Assistant:"] if add_generation_prompt else turns)

    def _score(self, asked: list[ScoredSequence]) -> list[Answer]:
        with progress_bar(len(asked), "loglikelihood", "requests") as bar:
            return self.scorer.score(asked, [self.state], bar.update)

    def _greedy(self, contexts: list[str], settings: Settings, tick: Tick) -> list[str]:
        prompts = [(context, 0) for context in contexts]
        return self.answerer.texts(prompts, [self.state], settings.stops, settings.limit, self.prefix, tick)

    def _sampled(self, contexts: list[str], settings: Settings, sampling: SamplingParams, tick: Tick) -> list[str]:
        """Each batch with the key of its place among all, from the state after the prefix."""
        texts, size = [], self.scorer.batch_size
        start = self.lm.logits(self.prefix, state=self.state)[1] if self.prefix else self.state
        for begin in range(0, len(contexts), size):
            part = contexts[begin : begin + size]
            key = jax.random.fold_in(jax.random.key(settings.seed), begin)
            batch = part + part[-1:] * (size - len(part))
            texts += generate_text(
                self.lm.model, self.lm.params, self.lm.tokenizer, batch, start, key, sampling, stop=settings.stops
            ).texts[: len(part)]
            tick(len(part))
        return texts

    def _kept(self, kind: str, requests: list[Instance], answers: list[A]) -> list[A]:
        """The answers, told to the harness's cache."""
        add: Callable[[str, tuple, A], None] = self.cache_hook.add_partial
        for request, answer in zip(requests, answers, strict=True):
            add(kind, request.args, answer)
        return answers
