"""Given choices: (context, continuation) pairs. The policy over them is the softmax of their log-likelihoods.

Expectations over the policy p are then sums, and so are their gradients with respect to a log-likelihood l_i:

    reward         - E[A]                      - p_i (r_i - sum_j p_j r_j), over the deviation of r under p if scaled
    distillation   KL(p | q)                   p_i (g_i - sum_j p_j g_j),   g = log p - log q
                   KL(q | p)                   p_i - q_i
                   mixed                       p_i (g_i - sum_j p_j g_j),   g = (1 - b) log(p / (b q + (1 - b) p))

q the softmax of the teacher's log-likelihoods.
"""

import jax
import numpy as np
from jaxtyping import Array, Int

from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.non_finite_cause import cause_named
from state_tuning.core.objective import Example, encode_example
from state_tuning.objectives.divergences import Kind
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import Weights, require_adaptable
from state_tuning.test_time_scaling.rollouts import Explored, Results, Samples, Session, batch_of, costs, reward
from state_tuning.test_time_scaling.selection import advantages, best
from state_tuning.test_time_scaling.teacher.in_process import Scores

NOTHING = Example(np.zeros(2, np.int32), 2, 0)
"""Tokens of which none counts."""


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
        self.samples = Samples(examples, texts, contexts, cost, [False] * len(rows))
        self.batch = batch_of(examples)
        self.present = np.asarray([bool(row) for row in rows])
        self._scores: Scores | None = None
        self.charged = False
        """Whether the teacher's reading is part of the costs that `explore` and `teacher_answers` returned."""

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
        """Scores all choices; each weighs as the gradient says, see the module."""
        config = self.s.config
        p = _softmax(self.log_likelihoods(delta))
        first, self.charged = not self.charged, True
        scores = self.score()
        rewards = np.where(self.present, reward(scores, config), 0.0)
        sums = self.teacher_sums() if config.signal != "reward" and config.reward == "log_probability" else None
        if sums is None or np.isnan(sums).any():
            rows = zip(rewards.reshape(p.shape), p, strict=True)
            gains = p * np.asarray([advantages(*row, scale=config.scale) for row in rows])
        else:
            gains = -slope(p, _softmax(sums), config.divergence, config.mixture)
        share = p.reshape(-1) / self.samples.lengths
        weights = Weights(gains.reshape(-1).astype(np.float32), share.astype(np.float32))
        asked = scores if first else scores._replace(tokens=np.zeros_like(scores.tokens))
        return Explored(
            self.samples, rewards, weights, costs(self.samples, asked, len(p)), self.batch, None, asked.tokens
        )

    def teacher_sums(self) -> np.ndarray:
        """Returns the teacher's log-likelihoods of the choices [B, C], nats; -inf where a prompt has fewer choices."""
        scores = self.score()
        return np.where(self.present, scores.log_probability * scores.length, -np.inf).reshape(-1, self.width)

    def added(self, delta: Array, asked: bool = False) -> tuple[list[Results], list[Cost]]:
        """Returns log-likelihoods with `choice_weight` times the teacher's added; `asked`: the teacher is paid for."""
        student, teacher = self.log_likelihoods(delta), self.teacher_sums()
        both = np.where(np.isfinite(student), student + self.s.config.choice_weight * teacher, student)
        spent, read = (np.asarray(x).reshape(student.shape).sum(1) for x in (self.samples.cost, self.score().tokens))
        return self.results(both), [Cost(int(a), 0 if asked else int(b)) for a, b in zip(spent, read, strict=True)]

    def draw(self, delta: Array, count: int) -> Int[np.ndarray, "B N"]:
        """Returns positions of `count` choices a prompt, drawn from the policy."""
        log_p = self.log_likelihoods(delta).astype(np.float32)
        drawn = jax.vmap(lambda key, row: jax.random.categorical(key, row, shape=(count,)))(self.s.keys, log_p)
        return np.asarray(drawn) + np.arange(len(log_p))[:, None] * self.width

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
        spent = np.asarray(self.samples.cost).reshape(found.shape).sum(1)
        return self.results(found), [Cost(int(n)) for n in spent]

    def results(self, values: np.ndarray) -> list[Results]:
        """Returns values of choices [B, C] without the places of no choice."""
        return [row[: len(p.choices)].tolist() for row, p in zip(values, self.s.problems, strict=True)]

    def teacher_answers(self) -> tuple[list[Example], list[Cost]]:
        """Returns the choice of each problem that the teacher scores best; nothing of one that it does not score."""
        scores = self.score()
        rewards = np.where(self.present, reward(scores, self.s.config), np.nan).reshape(-1, self.width)
        examples = [
            NOTHING if np.isnan(row).all() else self.samples.examples[best(row) + b * self.width]
            for b, row in enumerate(rewards)
        ]
        read, self.charged = scores.tokens.reshape(rewards.shape).sum(1), True
        return examples, [Cost(0, int(n)) for n in read]


def slope(p: np.ndarray, q: np.ndarray, kind: Kind, mixture: float) -> np.ndarray:
    """Returns d D(p, q) / d l [B, C] for p = softmax(l), see the module; 0 where there is no choice."""
    if kind == "forward":
        return p - q
    with np.errstate(divide="ignore", invalid="ignore"):
        against = q if kind == "reverse" else mixture * q + (1 - mixture) * p
        gain = np.where(p > 0, np.log(p) - np.log(np.maximum(against, np.finfo(np.float64).tiny)), 0.0)
    gain = gain if kind == "reverse" else (1 - mixture) * gain
    return p * (gain - (p * gain).sum(-1, keepdims=True))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _spread(column: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(count, column.dtype)
    out[places] = column
    return out
