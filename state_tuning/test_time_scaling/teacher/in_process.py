"""The larger model that guides test-time scaling: it scores a student's chains, and writes some itself.

Two scores of a chain: its mean log-probability after the prompt, and the margin `log p(yes) - log p(no)` of the answer
to a question about it. Neither sees a gold label.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.generation.generate import SamplingConfig, generate_text
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer.tokenizers import Tokenizer
from state_tuning.core import objective, surgery


class Scores(NamedTuple):
    """One entry a chain, on the host."""

    log_probability: Float[np.ndarray, "N"]
    """Mean over the chain's tokens, nats, the teacher's own tokens; NaN where it was not asked for."""
    margin: Float[np.ndarray, "N"]
    """log p(yes) - log p(no); NaN where it was not asked for."""
    length: Int[np.ndarray, "N"]
    """The chain's tokens; their sum of log-probabilities is `length * log_probability`."""
    tokens: Int[np.ndarray, "N"]
    """All tokens that the teacher read or wrote for this."""


class Written(NamedTuple):
    """One entry a prompt."""

    texts: list[str]
    tokens: Int[np.ndarray, "N"]
    """All tokens that the teacher read or wrote for this."""


class Teacher(Protocol):
    """A larger model, wherever it runs."""

    def score(self, prompts: Sequence[str], chains: Sequence[str], margin: bool = False) -> Scores:
        """Score `chains[i]` as what follows `prompts[i]`; `margin` asks the yes-or-no question too."""
        ...

    def write(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Written:
        """Continuations of the prompts, before the first stop string; greedy, or sampled where there is a seed."""
        ...


@dataclasses.dataclass(frozen=True)
class Question:
    """How a chain is verified."""

    template: str = "{prompt}{chain}\n\nIs the answer above correct? Answer yes or no:"
    yes: str = " yes"
    no: str = " no"

    def __post_init__(self):
        if "{prompt}" not in self.template or "{chain}" not in self.template:
            raise ValueError("the question's template must contain {prompt} and {chain}")
        if not self.template.startswith("{prompt}{chain}"):
            raise ValueError("the question's template must begin with {prompt}{chain}: it is asked after them")

    @property
    def suffix(self) -> str:
        """What follows prompt and chain."""
        return self.template.removeprefix("{prompt}{chain}")

    def text(self, prompt: str, chain: str) -> str:
        """Prompt, chain and question."""
        return f"{prompt}{chain}{self.suffix}"


class InProcessTeacher:
    """Any RWKV-7 checkpoint, from its zero state or a tuned one (unbatched).

    An empty chain is scored as the end token. Raises: ValueError if yes begins with all of no, or no with yes.
    """

    def __init__(
        self,
        model: RWKV7,
        params: dict,
        tokenizer: Tokenizer,
        *,
        state: State | None = None,
        question: Question | None = None,
        batch_size: int = 32,
    ):
        self.model, self.params, self.tokenizer, self.batch_size = model, params, tokenizer, batch_size
        self.state = zero_state(model.config, None) if state is None else state
        self.question = question or Question()
        self._suffix, self._answers = _branch(tokenizer, self.question)

    def score(self, prompts: Sequence[str], chains: Sequence[str], margin: bool = False) -> Scores:
        """See `Teacher`. Both scores come from one pass; its tokens are those read, the question's included."""
        suffix = self._suffix if margin else []
        rows = [self._example(*pair) for pair in zip(prompts, chains, strict=True)]
        parts = [self._score(rows[i : i + self.batch_size], suffix) for i in range(0, len(rows), self.batch_size)]
        nothing = np.zeros(0, np.float32)
        total, found = (np.concatenate(column) for column in zip(*parts or [(nothing, nothing)], strict=True))
        length = np.asarray([len(row.tokens) - row.completion_start for row in rows], int)
        read = np.asarray([len(row.tokens) + len(suffix) for row in rows], int)
        return Scores(total / length, found if margin else np.full(len(rows), np.nan), length, read)

    def write(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Written:
        """See `Teacher`. Tokens: the prompt's, the text's, and the end of a text that ended by itself."""
        settings = SamplingConfig(temperature=0.0 if seed is None else 1.0, max_new_tokens=max_tokens)
        keys = self._keys(len(prompts), seed)
        texts: list[str] = []
        tokens: list[int] = []
        for begin in range(0, len(prompts), self.batch_size):
            part = list(prompts[begin : begin + self.batch_size])
            rows = part + part[-1:] * (self.batch_size - len(part))
            chosen = keys[jnp.minimum(jnp.arange(begin, begin + self.batch_size), len(prompts) - 1)]
            found = generate_text(
                self.model, self.params, self.tokenizer, rows, self.state, chosen, settings, stop=stop
            )
            texts += found.texts[: len(part)]
            read = [len(self.tokenizer.encode(prompt)) or 1 for prompt in part]
            written = zip(read, found.tokens, found.finished, strict=False)
            tokens += [n + len(ids) + int(finished) for n, ids, finished in written]
        return Written(texts, np.asarray(tokens, int))

    def _keys(self, count: int, seed: int | None) -> Key[jax.Array, "N"]:
        return jax.random.split(jax.random.key(seed or 0), count)

    def _example(self, prompt: str, chain: str) -> objective.Example:
        return objective.encode_example(self.tokenizer, prompt, chain, eos=not self.tokenizer.encode(chain))

    def _score(self, rows: Sequence[objective.Example], suffix: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(summed log-probability of the chain, margin) of each row of one batch."""
        whole = [objective.Example(_joined(row.tokens, suffix), row.completion_start, 0) for row in rows]
        # One token more than is scored: the last one read has no target.
        length = padded_prompt_length(max(len(row.tokens) for row in whole))
        padded = [row._replace(tokens=_joined(row.tokens, [0])) for row in whole]
        batch = objective.collate(padded, length, self.batch_size)
        chain = np.zeros_like(batch["loss_mask"])
        for i, row in enumerate(rows):
            chain[i, row.completion_start - 1 : len(row.tokens) - 1] = 1.0
        total, margin = _pass(self.model, self.params, self.state, {**batch, "loss_mask": chain}, self._answers)
        return np.asarray(total)[: len(rows)], np.asarray(margin)[: len(rows)]


def _branch(tokenizer: Tokenizer, question: Question) -> tuple[list[int], Int[np.ndarray, "2"]]:
    """(tokens after a chain up to where yes and no part, the token of each there)."""
    yes, no = tokenizer.encode(question.yes), tokenizer.encode(question.no)
    shared = next((i for i, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1]), None)
    if shared is None:
        raise ValueError(
            f"{question.yes!r} and {question.no!r}: one begins with all tokens of the other; choose others"
        )
    return [*tokenizer.encode(question.suffix), *yes[:shared]], np.asarray([yes[shared], no[shared]], np.int32)


@partial(jax.jit, static_argnums=0)
def _pass(model: RWKV7, params: Any, state: State, batch: dict, answers: Any) -> tuple[Any, Any]:
    apply: Callable[..., Any] = model.apply
    tokens, valid = batch["tokens"], batch["valid"]
    zero = zero_state(model.config, tokens.shape[0])
    start = surgery.broadcast(state, tokens.shape[0])
    start = start._replace(
        att_shift=start.att_shift.astype(zero.att_shift.dtype), ffn_shift=start.ffn_shift.astype(zero.ffn_shift.dtype)
    )
    hidden, _ = apply({"params": params}, tokens, start, valid=valid, method="hidden")

    def head(x: Any) -> Any:
        return apply({"params": params}, x, method="logits")

    nll, _ = objective.chunked_sums(hidden, head, batch["targets"], batch["loss_mask"])
    last = jnp.maximum(valid.sum(1) - 1, 0)
    logits = head(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
    return -nll, logits[:, answers[0]] - logits[:, answers[1]]


def _joined(tokens: np.ndarray, more: Sequence[int]) -> np.ndarray:
    return np.concatenate([tokens, np.asarray(more, np.int32)])
