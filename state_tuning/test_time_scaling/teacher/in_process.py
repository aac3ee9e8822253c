"""The larger model that guides test-time scaling: it scores a student's samples, and generates answers itself.

Two scores of a sample: its mean log-probability after the prompt, and the margin `log p(yes) - log p(no)` of the answer
to a question about it. Neither sees a gold label.
"""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rwkv7_jax import functional
from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.finite import NonFiniteLogitsError, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import SamplingParams, generate_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.model import RWKV7
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import encode_after
from state_tuning.core import objective
from state_tuning.objectives import distillation
from state_tuning.objectives.divergences import Exact, Target
from state_tuning.test_time_scaling.signals import Sampled, token_log_p

CHUNK = 128
"""Positions whose logits exist at a time."""


class Scores(NamedTuple):
    """One entry a sample, on the host."""

    log_probability: Float[np.ndarray, "N"]
    """Mean over the sample's tokens, nats, the teacher's own tokens; NaN where there is none or it was not asked."""
    margin: Float[np.ndarray, "N"]
    """log p(yes) - log p(no); NaN where there is none or it was not asked."""
    length: Int[np.ndarray, "N"]
    """The sample's tokens; their sum of log-probabilities is `length * log_probability`."""
    tokens: Int[np.ndarray, "N"]
    """All tokens that the teacher read or generated for this."""


class Generated(NamedTuple):
    """One entry a prompt."""

    texts: list[str]
    """What the teacher wrote, before the first stop string."""
    tokens: Int[np.ndarray, "N"]
    """All tokens that the teacher read or generated for this."""


class Reading(NamedTuple):
    """What a teacher says of a student's samples, token by token."""

    scores: Scores
    """Of each sample's tokens, the end token included where the student's sample has it."""
    target: Target
    """Its distribution at every token [R, T]."""
    sampled: Sampled
    """Its log-probability of every token [R, T]."""


class Teacher(Protocol):
    """A larger model, wherever it runs."""

    def score(
        self,
        prompts: Sequence[str],
        samples: Sequence[str],
        margin: bool = False,
        ended: Sequence[bool] | None = None,
    ) -> Scores:
        """Scores samples.

        Args:
          prompts: what each sample follows.
          samples: the texts to be scored.
          margin: whether the yes-or-no question is asked too.
          ended: whether each sample ended by itself; its end is then scored as a token of it, if the teacher can.

        Returns:
          The scores, one entry a sample.
        """
        ...

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Generated:
        """Continues prompts.

        Args:
          prompts: the texts.
          max_tokens: tokens of each continuation at most.
          stop: texts that end it.
          seed: of samples; None is greedy.

        Returns:
          The continuations, up to the first stop string.
        """
        ...


@runtime_checkable
class TokenTeacher(Protocol):
    """A teacher that gives distributions over a student's own tokens."""

    def reads(self, lm: LanguageModel) -> bool:
        """Returns whether it can read the tokens of this student."""
        ...

    def read(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        samples: Sequence[str],
        examples: Sequence[objective.Example],
        batch: objective.Batch,
    ) -> Reading:
        """Reads samples in the student's tokens: `batch` holds `examples`, and a sample's tokens count in it."""
        ...


@dataclasses.dataclass(frozen=True)
class Question:
    """How a sample is verified.

    Example:
      >>> Question("{prompt}{chain}\\nRight? Y or N:", yes=" Y", no=" N").text("2+2=", " 4")
      '2+2= 4\\nRight? Y or N:'
    """

    template: str = "{prompt}{chain}\n\nIs the answer above correct? Answer yes or no:"
    """Begins with {prompt}{chain}, the prompt and the sample; the question follows."""
    yes: str = " yes"
    """How an answer begins that calls the sample right."""
    no: str = " no"
    """How one begins that calls it wrong."""

    def __post_init__(self):
        if "{prompt}" not in self.template or "{chain}" not in self.template:
            raise ValueError("the question's template must contain {prompt} and {chain}")
        if not self.template.startswith("{prompt}{chain}"):
            raise ValueError("the question's template must begin with {prompt}{chain}: it is asked after them")

    @property
    def suffix(self) -> str:
        """What follows prompt and sample."""
        return self.template.removeprefix("{prompt}{chain}")

    def text(self, prompt: str, sample: str) -> str:
        """Returns prompt, sample and question."""
        return f"{prompt}{sample}{self.suffix}"


class InProcessTeacher:
    """Any RWKV-7 checkpoint, from its zero state or a tuned one (unbatched).

    An empty sample is scored as the end token.

    Args:
      lm: the larger model.
      state: the unbatched state that it starts from; None is the zero state.
      question: how a sample is verified.
      batch_size: sequences at once.

    Raises:
      ValueError: yes begins with all of no, or no with all of yes.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        state: State | None = None,
        question: Question | None = None,
        batch_size: int = 32,
    ):
        self.lm, self.tokenizer, self.batch_size = lm, lm.tokenizer, batch_size
        self.state = zero_state(lm.config, None) if state is None else state
        self.question = question or Question()
        self._suffix, self._answers = _branch(lm.tokenizer, self.question)

    def score(
        self,
        prompts: Sequence[str],
        samples: Sequence[str],
        margin: bool = False,
        ended: Sequence[bool] | None = None,
    ) -> Scores:
        """Scores as `Teacher` says. Both scores come from one pass; its tokens are those read, with the question's.

        The margin is of the sample without its end token: the question follows the text.

        Raises:
          NonFiniteLogitsError: a `ValueError`; the teacher's logits are not finite.
        """
        suffix = self._suffix if margin else []
        ends = [False] * len(samples) if ended is None or margin else ended
        rows = [self._example(*one) for one in zip(prompts, samples, ends, strict=True)]
        parts = [self._score(rows[i : i + self.batch_size], suffix) for i in range(0, len(rows), self.batch_size)]
        nothing = np.zeros(0, np.float32)
        total, found = (np.concatenate(column) for column in zip(*parts or [(nothing, nothing)], strict=True))
        length = np.asarray([len(row.tokens) - row.completion_start for row in rows], int)
        read = np.asarray([len(row.tokens) + len(suffix) for row in rows], int)
        return Scores(total / length, found if margin else np.full(len(rows), np.nan), length, read)

    def reads(self, lm: LanguageModel) -> bool:
        """Returns whether the student's tokens are its own: the same bytes behind every id, and as many logits."""
        return lm.config.vocab_size == self.lm.config.vocab_size and same_tokens(lm.tokenizer, self.tokenizer)

    def read(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        samples: Sequence[str],
        examples: Sequence[objective.Example],
        batch: objective.Batch,
    ) -> Reading:
        """Reads as `TokenTeacher` says: the whole distribution at every token. Tokens: those of the examples.

        A sample without a token has no score.

        Raises:
          NonFiniteLogitsError: a `ValueError`; the teacher's logits are not finite.
        """
        del tokenizer, prompts, samples
        found = []
        for begin in range(0, len(examples), self.batch_size):
            part = {name: jnp.asarray(column)[begin : begin + self.batch_size] for name, column in batch.items()}
            found.append(_read(self.lm.model, self.lm.params, self.state, part))
        hidden, log_q = (
            jnp.concatenate(column) if len(found) > 1 else column[0] for column in zip(*found, strict=True)
        )
        values, mask = np.asarray(log_q, np.float64), np.asarray(batch["loss_mask"], np.float64)
        if not np.isfinite(values).all():
            with cause_named(self.lm.params, [self.state]):
                raise NonFiniteLogitsError("the teacher's logits are not finite")
        length = mask.sum(1).astype(int)
        mean = np.where(length > 0, values.sum(1) / np.maximum(length, 1), np.nan)
        tokens = np.asarray([len(example.tokens) for example in examples], int)
        scores = Scores(mean, np.full(len(examples), np.nan), length, tokens)
        return Reading(
            scores, Exact(self.lm.model, self.lm.params, hidden), Sampled(log_q, jnp.asarray(mask, jnp.float32))
        )

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Generated:
        """Generates as `Teacher` says. Tokens: the prompt's, the text's, and the end of a text that ended by itself."""
        settings = SamplingParams(temperature=0.0 if seed is None else 1.0, max_new_tokens=max_tokens)
        keys = self._keys(len(prompts), seed)
        texts: list[str] = []
        tokens: list[int] = []
        for begin in range(0, len(prompts), self.batch_size):
            part = list(prompts[begin : begin + self.batch_size])
            rows = part + part[-1:] * (self.batch_size - len(part))
            chosen = keys[jnp.minimum(jnp.arange(begin, begin + self.batch_size), len(prompts) - 1)]
            found = generate_text(
                self.lm.model, self.lm.params, self.tokenizer, rows, self.state, chosen, settings, stop=stop
            )
            texts += found.texts[: len(part)]
            read = [len(self.tokenizer.encode(prompt)) or 1 for prompt in part]
            counted = zip(read, found.tokens, found.finished, strict=False)
            tokens += [n + len(ids) + int(finished) for n, ids, finished in counted]
        return Generated(texts, np.asarray(tokens, int))

    def _keys(self, count: int, seed: int | None) -> Key[Array, "N"]:
        return jax.random.split(jax.random.key(seed or 0), count)

    def _example(self, prompt: str, sample: str, ended: bool) -> objective.Example:
        return objective.encode_example(self.tokenizer, prompt, sample, eos=ended or not self.tokenizer.encode(sample))

    def _score(self, rows: Sequence[objective.Example], suffix: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(summed log-probability of the sample, margin) of each sequence of one batch."""
        whole = [objective.Example(_joined(row.tokens, suffix), row.completion_start, 0) for row in rows]
        # One token more than is scored: the last one read has no target.
        length = padded_prompt_length(max(len(row.tokens) for row in whole))
        padded = [row._replace(tokens=_joined(row.tokens, [0])) for row in whole]
        batch = objective.collate(padded, length, self.batch_size)
        mask = np.zeros_like(batch["loss_mask"])
        for i, row in enumerate(rows):
            mask[i, row.completion_start - 1 : len(row.tokens) - 1] = 1.0
        arrays = jax.tree.map(jnp.asarray, {**batch, "loss_mask": mask})
        found = _pass(self.lm.model, self.lm.params, self.state, arrays, jnp.asarray(self._answers))
        total, margin, finite = (np.asarray(column)[: len(rows)] for column in found)
        if not (finite.all() and np.isfinite(total).all()):
            with cause_named(self.lm.params, [self.state]):
                raise NonFiniteLogitsError("the teacher's logits are not finite")
        return total, margin


def _branch(tokenizer: Tokenizer, question: Question) -> tuple[list[int], Int[np.ndarray, "2"]]:
    """(tokens after a sample up to where yes and no part, the token of each there)."""
    yes, no = encode_after(tokenizer, question.yes), encode_after(tokenizer, question.no)
    shared = next((i for i, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1]), None)
    if shared is None:
        raise ValueError(
            f"{question.yes!r} and {question.no!r}: one begins with all tokens of the other; choose others"
        )
    return [*encode_after(tokenizer, question.suffix), *yes[:shared]], np.asarray([yes[shared], no[shared]], np.int32)


@partial(jax.jit, static_argnums=0)
def _pass(
    model: RWKV7, params: Params, state: State, batch: dict[str, Array], answers: Int[Array, "2"]
) -> tuple[Array, Array, Array]:
    hidden = distillation.read(model, params, state, batch)
    valid = batch["valid"]

    def head(x: Array) -> Array:
        return functional.logits(model, params, x)

    nll, _ = objective.chunked_sums(hidden, head, batch["targets"], batch["loss_mask"])
    last = jnp.maximum(valid.sum(1) - 1, 0)
    logits = head(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
    return -nll, logits[:, answers[0]] - logits[:, answers[1]], ~not_finite(logits)


@partial(jax.jit, static_argnums=0)
def _read(model: RWKV7, params: Params, state: State, batch: dict[str, Array]) -> tuple[Array, Array]:
    """(activations, log-probability of each token that counts and 0 elsewhere)"""
    hidden = distillation.read(model, params, state, batch)

    def head(x: Array) -> Array:
        return functional.logits(model, params, x)

    return hidden, token_log_p(hidden, head, batch["targets"], batch["loss_mask"], CHUNK)


@lru_cache(maxsize=8)
def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Returns whether two tokenizers have the same bytes behind every id, and one end."""
    if one is other:
        return True
    if (one.vocab_size, one.eos_id) != (other.vocab_size, other.eos_id):
        return False
    return all(one.decode_bytes([i]) == other.decode_bytes([i]) for i in range(one.vocab_size))


def _joined(tokens: np.ndarray, more: Sequence[int]) -> np.ndarray:
    return np.concatenate([tokens, np.asarray(more, np.int32)])
