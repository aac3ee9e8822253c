"""What a student can try for a prompt, and what the teacher says of it: sampled answers (`choices`: given ones)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.generation.generate import SamplingParams, generate_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer.abilities import encode_after
from state_tuning.core.objective import Batch, Example, collate
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Program, Weights, require_adaptable
from state_tuning.test_time_scaling.selection import advantages, leave_one_out
from state_tuning.test_time_scaling.signals import Signal, take
from state_tuning.test_time_scaling.teacher.in_process import Scores, Teacher, TokenTeacher

__all__ = ["Explored", "Problem", "SampledAnswers", "Samples", "Session", "Student"]

NOT_CHOSEN = -1e9
"""Log-likelihood reported for a choice that was not chosen."""

Results = list[str] | list[float]
"""As benchmark tasks take them: [text], or the log-likelihood of each choice."""


class Student(NamedTuple):
    """The model that answers."""

    lm: LanguageModel
    """The frozen model."""
    state: State
    """The unbatched state that every prompt starts from, tuned or zero."""


class Problem(NamedTuple):
    """One prompt: open, or with given choices."""

    prompt: str
    """What the student reads."""
    choices: tuple[tuple[str, str], ...] = ()
    """(context, continuation) of each; empty: the problem is open."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""


class Session(NamedTuple):
    """Everything that the answers of one batch of problems depend on."""

    student: Student
    """The model that answers."""
    program: Program
    """Of `make_program`, for the student's model and these settings."""
    teacher: Teacher
    """The larger model, or anything that scores samples."""
    problems: Sequence[Problem]
    """B of them, all open or all with choices."""
    keys: Key[Array, "B"]
    """One for each prompt, so that its samples do not depend on the batch."""
    config: AdaptConfig
    """The settings."""


class Samples(NamedTuple):
    """K samples for each of B prompts, flat: r = b K + k."""

    examples: list[Example]
    """Prompt and sample as token ids."""
    texts: list[str]
    """The samples, before the end token or the stop string."""
    contexts: list[str]
    """The prompt of each."""
    cost: list[int]
    """Student tokens of each; 0 where a prompt has fewer choices than others, and nothing stands here."""
    ended: list[bool]
    """Whether each ended by the end token, which is then the last one of its example."""

    def of(self, prompts: Sequence[int], copies: int) -> "Samples":
        """Picks the samples of some prompts.

        Args:
          prompts: their numbers; one may stand there several times.
          copies: K.

        Returns:
          Their samples, in this order.
        """
        rows = [row * copies + k for row in prompts for k in range(copies)]
        return Samples(
            [self.examples[r] for r in rows],
            [self.texts[r] for r in rows],
            [self.contexts[r] for r in rows],
            [self.cost[r] for r in rows],
            [self.ended[r] for r in rows],
        )

    @property
    def lengths(self) -> Float[np.ndarray, "R"]:
        """Tokens that count in each sample, at least 1."""
        return np.asarray([max(1, len(e.tokens) - e.completion_start) for e in self.examples], np.float64)


class Explored(NamedTuple):
    """Samples with the teacher's rewards [R], and what they cost each prompt, seconds aside."""

    samples: Samples
    """What was drawn."""
    rewards: np.ndarray
    """Of each sample [R], float64; NaN where the teacher says nothing."""
    weights: Weights
    """How much each counts in the update."""
    cost: list[Cost]
    """Of each prompt."""
    batch: Batch
    """The samples [R, T], as `Program.update` takes them."""
    signal: Signal | None
    """What the teacher says of each token."""
    read: np.ndarray
    """Tokens that the teacher read for each sample."""


class SampledAnswers:
    """Answers are sampled; the final answer is the greedy one.

    Args:
      session: what they depend on.
      live: the first prompts count, all others fill the batch up and cost the teacher nothing; None: all count.
    """

    def __init__(self, session: Session, live: int | None = None):
        require_adaptable(session.student.state)
        self.s, self.signal = session, signal_of(session)
        self.live = len(session.problems) if live is None else live

    def sample(self, delta: Array, first: int, count: int) -> Samples:
        """Draws samples; the k-th of a prompt depends on its prompt's key and the number first + k alone.

        Args:
          delta: of each prompt [L, B, H, V, K], see `Adapted`.
          first: number of the first sample.
          count: samples a prompt.

        Returns:
          The samples, B * count of them.
        """
        config = self.s.config
        folds = np.arange(first, first + count)
        keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(folds))(self.s.keys).reshape(-1)
        settings = SamplingParams(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        return self._generate(delta, count, keys, settings)

    def explore(self, delta: Array, step: int) -> Explored:
        """Draws K new samples a prompt, and asks the teacher about them.

        Args:
          delta: of each prompt [L, B, H, V, K].
          step: number of the gradient step, from 0.

        Returns:
          The samples with their rewards and weights, for `Program.update`.
        """
        return self.weigh(self.sample(delta, step * self.s.config.samples, self.s.config.samples))

    def weigh(self, samples: Samples) -> Explored:
        """Lets the teacher read samples: each weighs its advantage, or all tokens of a prompt the same.

        Args:
          samples: the same number for each prompt.

        Returns:
          The samples with their rewards and weights, for `Program.update`.
        """
        config, prompts, batch = self.s.config, len(self.s.problems), batch_of(samples.examples)
        lengths = samples.lengths.reshape(prompts, -1)
        copies = lengths.shape[1]
        each, signal = 1.0 / (copies * samples.lengths), None
        if self.signal == "reward":
            scores = self._filled(self.score(self._counted(samples)), copies)
            rewards = reward(scores, config)
            group = config.baseline == "group"
            gain = np.concatenate([
                advantages(part, scale=config.scale) if group else leave_one_out(part)
                for part in rewards.reshape(prompts, -1)
            ])  # fmt: skip
            policy = gain * (each if group else 1.0 / copies)
        else:
            scores, signal = self._reading(samples, batch, copies)
            rewards = reward(scores, config)
            policy = each = np.repeat(1.0 / lengths.sum(1), copies)
        counts = np.arange(prompts * copies) < self.live * copies
        weights = Weights((policy * counts).astype(np.float32), (each * counts).astype(np.float32))
        return Explored(samples, rewards, weights, costs(samples, scores, prompts), batch, signal, scores.tokens)

    def score(self, samples: Samples) -> Scores:
        """Returns the teacher's scores of each sample, its end included where it ended by the end token."""
        margin = self.s.config.reward == "margin"
        if not any(samples.ended):
            return self.s.teacher.score(samples.contexts, samples.texts, margin)
        return self.s.teacher.score(samples.contexts, samples.texts, margin, samples.ended)

    def judge(self, samples: Samples) -> Scores:
        """Returns the scores that choose among samples: those that exploring gives."""
        copies = len(samples.texts) // len(self.s.problems)
        if self.signal == "reward":
            return self._filled(self.score(self._counted(samples)), copies)
        return self._reading(samples, batch_of(samples.examples), copies)[0]

    def greedy(self, delta: Array) -> Samples:
        """Writes the greedy text of each problem.

        Args:
          delta: of each prompt [L, B, H, V, K].

        Returns:
          One sample a prompt.
        """
        settings = SamplingParams(temperature=0.0, max_new_tokens=self.s.config.max_new_tokens)
        return self._generate(delta, 1, self.s.keys, settings)

    def answer(self, delta: Array) -> tuple[list[Results], list[Cost]]:
        """Returns the greedy text of each problem, and its cost."""
        found = self.greedy(delta)
        return [[text] for text in found.texts], [Cost(n) for n in found.cost]

    def teacher_answers(self) -> tuple[list[Example], list[Cost]]:
        """Returns the teacher's own answer to each problem, in the student's tokens."""
        prompts, stop = [problem.prompt for problem in self.s.problems], self.s.problems[0].stop
        found = self.s.teacher.generate(prompts, self.s.config.max_new_tokens, stop)
        encoded = [
            encode_after(self.s.student.lm.tokenizer, text)[: self.s.config.max_new_tokens] for text in found.texts
        ]
        examples = [self._example(*pair, end=False) for pair in zip(prompts, encoded, strict=True)]
        return examples, [Cost(0, int(n)) for n in found.tokens]

    def _reading(self, samples: Samples, batch: Batch, copies: int) -> tuple[Scores, Signal]:
        """The scores, and the signal of every row."""
        teacher, own, count = self.s.teacher, self._counted(samples), self.live * copies
        assert isinstance(teacher, TokenTeacher)
        part = Batch(
            tokens=batch["tokens"][:count],
            targets=batch["targets"][:count],
            loss_mask=batch["loss_mask"][:count],
            valid=batch["valid"][:count],
        )
        found = teacher.read(self.s.student.lm.tokenizer, own.contexts, own.texts, own.examples, part)
        signal = found.target if self.signal == "distillation" else found.sampled
        rows = self._rows(copies)
        return self._filled(found.scores, copies), signal if len(rows) == count else take(signal, rows)

    def _counted(self, samples: Samples) -> Samples:
        return samples.of(range(self.live), len(samples.texts) // len(self.s.problems))

    def _rows(self, copies: int) -> np.ndarray:
        """For each row of the batch a row that counts."""
        count = np.arange(len(self.s.problems) * copies)
        return np.where(count < self.live * copies, count, count % copies)

    def _filled(self, scores: Scores, copies: int) -> Scores:
        rows = self._rows(copies)
        return scores if len(rows) == len(scores.tokens) else Scores(*(column[rows] for column in scores))

    def _generate(self, delta: Array, copies: int, keys: Array, settings: SamplingParams) -> Samples:
        lm, stop = self.s.student.lm, self.s.problems[0].stop
        prompts = [problem.prompt for problem in self.s.problems for _ in range(copies)]
        state = self.s.program.states(self.s.student.state, delta, copies)
        found = generate_text(lm.model, lm.params, lm.tokenizer, prompts, state, keys, settings, stop=stop)
        ended = [end and not cut for end, cut in zip(found.finished, found.stopped, strict=True)]
        examples = [self._example(*one) for one in zip(prompts, found.tokens, ended, strict=True)]
        cost = [len(ids) + int(end) for ids, end in zip(found.tokens, found.finished, strict=True)]
        return Samples(examples, found.texts, prompts, cost, ended)

    def _example(self, prompt: str, tokens: Sequence[int], end: bool) -> Example:
        tokenizer = self.s.student.lm.tokenizer
        context = tokenizer.encode(prompt) or [tokenizer.eos_id]
        whole = [*context, *tokens, *([tokenizer.eos_id] if end else [])]
        return Example(np.asarray(whole, np.int32), len(context), 0)


def signal_of(session: Session) -> str:
    """Returns the signal of sampled answers: that of the settings, or the best one that the teacher gives.

    Raises:
      ValueError: the teacher does not give the one that was asked for.
    """
    wanted, teacher = session.config.signal, session.teacher
    reads = isinstance(teacher, TokenTeacher) and teacher.reads(session.student.lm)
    if wanted in ("distillation", "token") and not reads:
        raise ValueError(
            f"signal {wanted}: the teacher gives no distributions over the student's tokens (another tokenizer, or a "
            "chat endpoint); choose signal reward"
        )
    if wanted == "auto":
        return "distillation" if reads and session.config.reward == "log_probability" else "reward"
    return wanted


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
    empty = (scores.length == 0) & (scores.tokens > 0)
    if np.isnan(value).all() and not empty.all():
        raise ValueError(f"the teacher gives no {config.reward}; choose the other reward, or another interface")
    return value


def costs(samples: Samples, scores: Scores, prompts: int) -> list[Cost]:
    """Returns what samples and their scores cost each prompt, seconds aside."""
    student, teacher = np.asarray(samples.cost).reshape(prompts, -1), scores.tokens.reshape(prompts, -1)
    return [Cost(int(a), int(b)) for a, b in zip(student.sum(1), teacher.sum(1), strict=True)]
