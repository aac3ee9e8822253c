"""What a student can try for a prompt, and how the teacher scores it: sampled answers, or given choices.

`SampledAnswers` are sampled text. `GivenChoices` are (context, continuation) pairs; the policy over them is the softmax
of their log-likelihoods, so the policy gradient is an expectation instead of a sample mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation.generate import SamplingParams, TextResult, generate_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer.abilities import encode_after
from state_tuning.core.objective import Batch, Example, collate, encode_example
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Program, Weights, require_adaptable
from state_tuning.test_time_scaling.selection import advantages, best
from state_tuning.test_time_scaling.teacher.in_process import Scores, Teacher

NOT_CHOSEN = -1e9
"""Log-likelihood reported for a choice that was not chosen."""
NOTHING = Example(np.zeros(2, np.int32), 2, 0)
"""Tokens of which none counts."""

Results = list[str] | list[float]
"""As benchmark tasks take them: [text], or the log-likelihood of each choice."""


class Student(NamedTuple):
    """The frozen model, and the tuned state that every prompt starts from (unbatched)."""

    lm: LanguageModel
    state: State


class Problem(NamedTuple):
    """One prompt: open, or with choices as (context, continuation)."""

    prompt: str
    choices: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()


class Session(NamedTuple):
    """Everything that the answers of one batch of problems depend on. A prompt's key is its own."""

    student: Student
    program: Program
    teacher: Teacher
    problems: Sequence[Problem]
    keys: Key[Array, "B"]
    config: AdaptConfig


class Samples(NamedTuple):
    """K samples for each of B prompts, flat: r = b K + k."""

    examples: list[Example]
    texts: list[str]
    contexts: list[str]
    cost: list[int]
    """Student tokens of each; 0 where a prompt has fewer choices than others, and nothing stands here."""

    @property
    def lengths(self) -> Float[np.ndarray, "R"]:
        """Tokens that count in each sample, at least 1."""
        return np.asarray([max(1, len(e.tokens) - e.completion_start) for e in self.examples], np.float64)


class Explored(NamedTuple):
    """Samples with the teacher's rewards [R], and what they cost each prompt, seconds aside."""

    samples: Samples
    rewards: np.ndarray
    weights: Weights
    cost: list[Cost]


class SampledAnswers:
    """Answers are sampled; the final answer is the greedy one."""

    def __init__(self, session: Session):
        require_adaptable(session.student.state)
        self.s = session

    def sample(self, delta: Array, first: int, count: int) -> Samples:
        """Draws `count` samples a prompt; the k-th depends on its prompt's key and the number first + k alone."""
        problems, config = self.s.problems, self.s.config
        folds = np.arange(first, first + count)
        keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(folds))(self.s.keys).reshape(-1)
        settings = SamplingParams(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        prompts = [problem.prompt for problem in problems for _ in range(count)]
        found = self._generate(prompts, delta, count, keys, settings)
        ends = [finished and not problems[0].stop for finished in found.finished]
        examples = [self._example(*one) for one in zip(prompts, found.tokens, ends, strict=True)]
        return Samples(examples, found.texts, prompts, _generated(found))

    def explore(self, delta: Array, step: int) -> Explored:
        """Draws and scores K new samples a prompt; each weighs its advantage / (K length)."""
        config = self.s.config
        samples = self.sample(delta, step * config.samples, config.samples)
        scores = self.score(samples)
        rewards = reward(scores, config)
        gain = np.concatenate([advantages(part, scale=config.scale) for part in rewards.reshape(-1, config.samples)])
        share = 1.0 / (config.samples * samples.lengths)
        weights = Weights((gain * share).astype(np.float32), share.astype(np.float32))
        return Explored(samples, rewards, weights, costs(samples, scores, len(self.s.problems)))

    def score(self, samples: Samples) -> Scores:
        """Returns the teacher's scores of each sample."""
        return self.s.teacher.score(samples.contexts, samples.texts, self.s.config.reward == "margin")

    def answer(self, delta: Array) -> tuple[list[Results], list[Cost]]:
        """Returns the greedy text of each problem, and its cost."""
        settings = SamplingParams(temperature=0.0, max_new_tokens=self.s.config.max_new_tokens)
        found = self._generate([p.prompt for p in self.s.problems], delta, 1, self.s.keys, settings)
        return [[text] for text in found.texts], [Cost(n) for n in _generated(found)]

    def teacher_answers(self) -> tuple[list[Example], list[Cost]]:
        """Returns the teacher's own answer to each problem, in the student's tokens."""
        prompts, stop = [problem.prompt for problem in self.s.problems], self.s.problems[0].stop
        found = self.s.teacher.generate(prompts, self.s.config.max_new_tokens, stop)
        encoded = [
            encode_after(self.s.student.lm.tokenizer, text)[: self.s.config.max_new_tokens] for text in found.texts
        ]
        examples = [self._example(*pair, end=False) for pair in zip(prompts, encoded, strict=True)]
        return examples, [Cost(0, int(n)) for n in found.tokens]

    def _generate(
        self, prompts: Sequence[str], delta: Array, copies: int, keys: Array, settings: SamplingParams
    ) -> TextResult:
        lm, stop = self.s.student.lm, self.s.problems[0].stop
        state = self.s.program.states(self.s.student.state, delta, copies)
        return generate_text(lm.model, lm.params, lm.tokenizer, prompts, state, keys, settings, stop=stop)

    def _example(self, prompt: str, tokens: Sequence[int], end: bool) -> Example:
        tokenizer = self.s.student.lm.tokenizer
        context = tokenizer.encode(prompt) or [tokenizer.eos_id]
        whole = [*context, *tokens, *([tokenizer.eos_id] if end else [])]
        return Example(np.asarray(whole, np.int32), len(context), 0)


class GivenChoices:
    """Samples are the given choices, the same at every step: the teacher is asked once."""

    def __init__(self, session: Session):
        require_adaptable(session.student.state)
        self.s = session
        self.width = max(len(problem.choices) for problem in session.problems)
        rows = [problem.choices[k : k + 1] for problem in session.problems for k in range(self.width)]
        tokenizer = session.student.lm.tokenizer
        examples = [encode_example(tokenizer, *row[0], eos=False) if row else NOTHING for row in rows]
        cost = [len(example.tokens) - example.completion_start for example in examples]
        texts, contexts = [row[0][1] if row else "" for row in rows], [row[0][0] if row else "" for row in rows]
        self.samples = Samples(examples, texts, contexts, cost)
        self.batch = batch_of(examples)
        self.present = np.asarray([bool(row) for row in rows])
        self._scores: Scores | None = None

    def log_likelihoods(self, delta: Array) -> np.ndarray:
        """Returns those of the choices [B, C], nats; -inf where a prompt has fewer choices.

        Raises:
          NonFiniteLogitsError: a `ValueError`; that of a choice is not finite.
        """
        student = self.s.student
        nll = np.asarray(self.s.program.nll(student.lm.params, student.state, delta, self.batch), np.float64)
        if not np.isfinite(nll[self.present]).all():
            with cause_named(student.lm.params, [student.state]):
                raise NonFiniteLogitsError("the student's log-likelihoods of choices are not finite")
        return np.where(self.present, -nll, -np.inf).reshape(-1, self.width)

    def explore(self, delta: Array, step: int) -> Explored:
        """Scores all choices; each weighs its probability times its advantage over the policy's mean reward."""
        config = self.s.config
        p = _softmax(self.log_likelihoods(delta))
        first = self._scores is None
        scores = self.score()
        rewards = np.where(self.present, reward(scores, config), 0.0)
        gains = [advantages(*pair, scale=config.scale) for pair in zip(rewards.reshape(p.shape), p, strict=True)]
        share = p.reshape(-1) / self.samples.lengths
        weights = Weights((p * gains).reshape(-1).astype(np.float32), share.astype(np.float32))
        asked = scores if first else scores._replace(tokens=np.zeros_like(scores.tokens))
        return Explored(self.samples, rewards, weights, costs(self.samples, asked, len(p)))

    def score(self) -> Scores:
        """Returns the teacher's scores of each choice, asked once; zeros where there is no choice."""
        if self._scores is None:
            here, margin = np.flatnonzero(self.present), self.s.config.reward == "margin"
            contexts, texts = ([column[i] for i in here] for column in (self.samples.contexts, self.samples.texts))
            found = self.s.teacher.score(contexts, texts, margin)
            self._scores = Scores(*(_spread(column, here, len(self.present)) for column in found))
        return self._scores

    def answer(self, delta: Array) -> tuple[list[Results], list[Cost]]:
        """Returns the log-likelihood of each choice of each problem, and its cost."""
        found = self.log_likelihoods(delta)
        rows: list[Results] = [row[: len(p.choices)].tolist() for row, p in zip(found, self.s.problems, strict=True)]
        spent = np.asarray(self.samples.cost).reshape(found.shape).sum(1)
        return rows, [Cost(int(n)) for n in spent]

    def teacher_answers(self) -> tuple[list[Example], list[Cost]]:
        """Returns the choice of each problem that the teacher scores best; nothing of one that it does not score."""
        scores = self.score()
        rewards = np.where(self.present, reward(scores, self.s.config), np.nan).reshape(-1, self.width)
        examples = [
            NOTHING if np.isnan(row).all() else self.samples.examples[best(row) + b * self.width]
            for b, row in enumerate(rewards)
        ]
        read = scores.tokens.reshape(rewards.shape).sum(1)
        return examples, [Cost(0, int(n)) for n in read]


def batch_of(examples: Sequence[Example]) -> Batch:
    """Collates examples to one of few padded lengths."""
    return collate(examples, padded_prompt_length(max(len(example.tokens) for example in examples)))


def reward(scores: Scores, config: AdaptConfig) -> np.ndarray:
    """Returns the teacher's score that is the reward [R]; NaN for a sample of which the teacher says nothing.

    Raises:
      ValueError: the teacher does not give it, or it is infinite.
    """
    value = np.asarray(getattr(scores, config.reward), np.float64)
    if len(places := np.flatnonzero(np.isinf(value))):
        raise ValueError(f"the teacher's {config.reward} of a sample is {value[places[0]]}, not a finite number")
    if np.isnan(value).all():
        raise ValueError(f"the teacher gives no {config.reward}; choose the other reward, or another interface")
    return value


def costs(samples: Samples, scores: Scores, prompts: int) -> list[Cost]:
    """Returns what samples and their scores cost each prompt, seconds aside."""
    student, teacher = np.asarray(samples.cost).reshape(prompts, -1), scores.tokens.reshape(prompts, -1)
    return [Cost(int(a), int(b)) for a, b in zip(student.sum(1), teacher.sum(1), strict=True)]


def _generated(found: TextResult) -> list[int]:
    """Tokens generated in each sample: its text's, and one for its end if it ended by itself."""
    return [len(ids) + int(finished) for ids, finished in zip(found.tokens, found.finished, strict=True)]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _spread(column: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(count, column.dtype)
    out[places] = column
    return out
