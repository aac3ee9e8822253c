"""Models for lm-evaluation-harness that fork nothing: the yardsticks of the tests and of the benchmark."""

from collections.abc import Callable, Sequence

import numpy as np
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

from experiments.evaluation.evaluator import Evaluator
from rwkv7_jax import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.objective import Example


class PlainLM(TemplateLM):
    """The harness's own way of scoring: each context and continuation read whole, nothing shared.

    score: token sequences -> log-likelihood of each one's tokens from `start` on. `fed` counts tokens.
    """

    def __init__(self, tokenizer: Tokenizer, score: Callable[[list[Example]], Sequence[float]]):
        super().__init__()
        self.own, self.score, self.fed = tokenizer, score, 0

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.own.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Returns the tokens of a text."""
        return self.own.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        examples = [Example(np.asarray(own[1] + own[2], np.int32), len(own[1]), 0) for own in requests]
        self.fed += sum(len(example.tokens) - 1 for example in examples)
        return [(float(x), False) for x in self.score(examples)]

    def loglikelihood_rolling(self, requests: Sequence[object], disable_tqdm: bool = False) -> list[float]:
        """Raises NotImplementedError."""
        raise NotImplementedError("the yardstick scores continuations only")

    def generate_until(self, requests: Sequence[object], disable_tqdm: bool = False) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError("the yardstick scores continuations only")


def plain(evaluator: Evaluator, state: State | None = None) -> PlainLM:
    """Returns our model without forking, batched by length."""
    start = zero_state(evaluator.lm.model.config, None) if state is None else state
    return PlainLM(evaluator.lm.tokenizer, lambda examples: (-evaluator.losses(start, examples)[0]).tolist())
