"""Our model as a language model of lm-evaluation-harness (extra `lm-eval`): every task of it, with state forking.

results = lm_eval.simple_evaluate(model=ForkingLM(lm, state), tasks=["hellaswag"])
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from experiments.training.metrics_log import progress_bar
from rwkv7_jax import State, zero_state
from rwkv7_jax.generation.generate import SamplingConfig, generate_text
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.greedy import Generator, Prompt
from rwkv7_jax.inference.prefix_tree import Asked
from rwkv7_jax.inference.scoring import Forker
from rwkv7_jax.language_model import LanguageModel

MAX_NEW_TOKENS = 256


class ForkingLM(LM):
    """A model from one unbatched initial state, the zero state if none is given."""

    def __init__(self, lm: LanguageModel, state: State | None = None, batch_size: int = 32, prefix: Sequence[int] = ()):
        super().__init__()
        self.lm, self.prefix = lm, tuple(prefix)
        self.state = zero_state(lm.model.config, None) if state is None else state
        self.encoder = Encoder(lm.tokenizer)
        self.forker = Forker(lm.model, lm.params, batch_size)
        self._generator: Generator | None = None

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether it is the greedy one) for each request."""
        asked = [self.encoder.pair(*request.args, prefix=self.prefix) for request in requests]
        return self._kept("loglikelihood", requests, [tuple(answer) for answer in self._score(asked)])

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Log-likelihood of each whole text after the prefix (the end token if there is none); of any length."""
        prefix = self.prefix or (self.lm.tokenizer.eos_id,)
        texts = [tuple(self.encoder.encode(request.args[0])) for request in requests]
        answers = iter(self._score([Asked((*prefix, *ids), len(prefix)) for ids in texts if ids]))
        return self._kept("loglikelihood_rolling", requests, [next(answers)[0] if ids else 0.0 for ids in texts])

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Continuations up to the first `until` text; greedy ones row by row refilled, sampled ones batch by batch.

        Raises: ValueError for a generation setting that we do not have.
        """
        texts = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1]), []).append(index)
        for (stops, limit, sampling), members in groups.items():
            contexts = [requests[i].args[0] for i in members]
            with progress_bar(len(members), "generate_until", "texts") as bar:
                generate: Callable[..., list[str]] = self._greedy if sampling is None else self._sampled
                found = generate(contexts, stops, limit, sampling, bar.update)
            for index, text in zip(members, found, strict=True):
                texts[index] = text
        return self._kept("generate_until", requests, texts)

    @property
    def tokenizer_name(self) -> str:
        return self.lm.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """RWKV's chat format: `User: ...` and `Assistant: ...`, an empty line between."""
        turns = [f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in chat_history]
        return "\n\n".join([*turns, "Assistant:"] if add_generation_prompt else turns)

    def _score(self, asked: list[Asked]) -> list[Any]:
        with progress_bar(len(asked), "loglikelihood", "requests") as bar:
            return self.forker.score(asked, [self.state], bar.update)

    def _greedy(self, contexts: list[str], stops, limit: int, sampling: None, tick: Callable) -> list[str]:
        self._generator = self._generator or Generator(self.lm.model, self.lm.params, self.lm.tokenizer, self.forker)
        prompts = [Prompt(self.encoder.prompt(context, self.prefix)) for context in contexts]
        return self._generator.answers(prompts, [self.state], stops, limit, tick)

    def _sampled(self, contexts: list[str], stops, limit: int, sampling: tuple, tick: Callable) -> list[str]:
        """Each with the key of its place among all."""
        temperature, top_p, top_k = sampling
        config = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=limit)
        texts, size = [], self.forker.batch_size
        for begin in range(0, len(contexts), size):
            part = contexts[begin : begin + size]
            key = jax.random.fold_in(jax.random.key(0), begin)
            rows = part + part[-1:] * (size - len(part))
            found = generate_text(
                self.lm.model, self.lm.params, self.lm.tokenizer, rows, self.state, key, config, stop=stops
            )
            texts += found.texts[: len(part)]
            tick(len(part))
        return texts

    def _kept(self, kind: str, requests: list[Any], answers: list[Any]) -> list[Any]:
        """The answers, told to the harness's cache."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers


def _settings(arguments: dict[str, Any]) -> tuple[tuple[str, ...], int, tuple | None]:
    """(stop texts, tokens, None for greedy or (temperature, top_p, top_k)) of the harness's generation arguments."""
    rest = dict(arguments)
    until = rest.pop("until", None) or []
    stops = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    limit = int(rest.pop("max_gen_toks", MAX_NEW_TOKENS))
    temperature = float(rest.pop("temperature", 0.0) or 0.0)
    sampled = rest.pop("do_sample", temperature > 0) and temperature > 0
    top_p, top_k = float(rest.pop("top_p", 1.0)), int(rest.pop("top_k", 0))
    if rest:
        raise ValueError(f"generation settings {', '.join(rest)} are not known: until, max_gen_toks, do_sample, "
                         "temperature, top_p, top_k are")  # fmt: skip
    return stops, limit, (temperature, top_p, top_k) if sampled else None
