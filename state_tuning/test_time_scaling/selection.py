"""Choosing one of several samples: by votes, weighted or not, or by a scorer; and the advantages of samples."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Pool", "advantages", "agreement", "best", "leave_one_out", "majority", "weighted_vote"]

Values = Sequence[float] | np.ndarray


class Pool(NamedTuple):
    """Samples of one prompt that were drawn so far, in order.

    Example:
      >>> pool = Pool().plus(["so 7", "it is 8"], ["7", "8"], [-2.0, -0.5], [(3, 9), (4, 9)])
      >>> pool = pool.plus(["7"], ["7"], [-1.5], [(2, 8)])
      >>> pool.voted(weight=0.1), pool.voted(weight=4.0)
      ('7', 'it is 8')
    """

    texts: tuple[str, ...] = ()
    """The samples."""
    answers: tuple[Hashable, ...] = ()
    """The final answer of each, which votes are counted by; None and NaN have no vote."""
    scores: tuple[float, ...] = ()
    """The teacher's score of each, nats; NaN where there is none."""
    tokens: tuple[tuple[int, int], ...] = ()
    """(student's, teacher's) of each."""

    def plus(
        self, texts: Sequence[str], answers: Sequence[Hashable], scores: Values, tokens: Sequence[tuple[int, int]]
    ) -> "Pool":
        """Adds samples.

        Args:
          texts: the samples.
          answers: the final answer of each.
          scores: the teacher's score of each, nats.
          tokens: (student's, teacher's) of each.

        Returns:
          A new pool, with the further samples at its end.
        """
        numbers = (*self.scores, *map(float, scores))
        return Pool((*self.texts, *texts), (*self.answers, *answers), numbers, (*self.tokens, *tokens))

    def voted(self, weight: float) -> str:
        """Returns the text that `weighted_vote` chooses."""
        return self.texts[weighted_vote(self.answers, self.scores, weight)]


def majority(answers: Sequence[Hashable]) -> int:
    """Chooses by self-consistency: the first sample whose answer is the most frequent one (arXiv 2203.11171).

    Args:
      answers: of each sample; None stands for a sample without an answer and has no vote, NaN likewise.

    Returns:
      The index; ties go to the answer met first, and without any vote it is 0.

    Example:
      >>> majority(["8", None, "7", "7"])
      2
    """
    votes = Counter(answer for answer in answers if _votes(answer))
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def weighted_vote(answers: Sequence[Hashable], log_p: Values, weight: float) -> int:
    """Returns the index of the best sample of the answer with the largest sum of exp(weight * log_p).

    Weight 0 is the majority vote of the samples with a score; a large one is best-of-N.

    Args:
      answers: of each sample; None and NaN have no vote.
      log_p: the teacher's mean log-probability of each sample, nats; NaN where there is none, which has no vote.
      weight: c.

    Returns:
      The index; without any vote that of the best score, and without any score that of the majority.

    Raises:
      ValueError: a score is infinite.

    Example:
      >>> weighted_vote(["7", "7", "8"], [-2.0, -1.5, -0.4], weight=0.1)
      1
      >>> weighted_vote(["7", "7", "8"], [-2.0, -1.5, -0.4], weight=4.0)
      2
    """
    x = np.asarray(log_p, np.float64)
    _check_rewards(x)
    if np.isnan(x).all():
        return majority(answers)
    weights = np.exp(weight * (x - np.nanmax(x)))
    sums: dict[Hashable, float] = {}
    for answer, w in zip(answers, weights, strict=True):
        if _votes(answer) and not np.isnan(w):
            sums[answer] = sums.get(answer, 0.0) + float(w)
    if not sums:
        return best(x)
    chosen = max(sums, key=lambda answer: sums[answer])
    return best([score if answer == chosen else np.nan for answer, score in zip(answers, x, strict=True)])


def agreement(answers: Sequence[Hashable]) -> float:
    """Measures how far samples agree.

    Args:
      answers: of each sample; those without one (None, NaN) count as samples.

    Returns:
      The share of samples with the most frequent answer, 0 to 1.

    Example:
      >>> agreement(["8", None, "7", "7"])
      0.5
    """
    votes = Counter(answer for answer in answers if _votes(answer))
    return votes.most_common(1)[0][1] / len(answers) if votes else 0.0


def best(rewards: Values) -> int:
    """Chooses by best-of-N.

    Args:
      rewards: of each sample; NaN stands for a missing one.

    Returns:
      The index of the largest reward, the first among equals.

    Raises:
      ValueError: a reward is infinite, or all are missing.

    Example:
      >>> best([-2.0, float("nan"), -0.5, -0.5])
      2
    """
    x = np.asarray(rewards, np.float64)
    _check_rewards(x)
    if np.isnan(x).all():
        raise ValueError(f"none of {len(x)} samples has a reward, so none of them is the best")
    return int(np.nanargmax(x))


def leave_one_out(rewards: Values) -> np.ndarray:
    """Returns each reward less the mean of the other samples' (REINFORCE with leave-one-out, arXiv 2402.14740).

    The mean of these times grad log pi(sample) is an unbiased estimate of the gradient of the expected reward: the
    baseline of a sample does not depend on it.

    Args:
      rewards: of the group's K samples, drawn independently.

    Returns:
      float64 [K]; zeros for a single sample, or with a missing reward (NaN).

    Raises:
      ValueError: a reward is infinite.

    Example:
      >>> leave_one_out([1.0, 0.0, 0.0]).tolist()
      [1.0, -0.5, -0.5]
    """
    x = np.asarray(rewards, np.float64)
    _check_rewards(x)
    if len(x) < 2 or np.isnan(x).any():
        return np.zeros_like(x)
    return (x - x.mean()) * (len(x) / (len(x) - 1))


def advantages(rewards: Values, probabilities: Values | None = None, scale: bool = True) -> np.ndarray:
    """Returns rewards against the group's mean, divided by its standard deviation (GRPO, arXiv 2402.03300).

    Args:
      rewards: of the group's K members.
      probabilities: their weights in mean and deviation; None: equal ones.
      scale: whether to divide by the deviation.

    Returns:
      float64 [K]; zeros for a group of equal rewards, or with a missing one (NaN).

    Raises:
      ValueError: a reward is infinite, or a probability not finite.

    Example:
      >>> advantages([3.0, 1.0]).tolist(), advantages([3.0, 1.0], scale=False).tolist()
      ([1.0, -1.0], [1.0, -1.0])
      >>> advantages([5.0, 1.0]).tolist(), advantages([5.0, 1.0], scale=False).tolist()
      ([1.0, -1.0], [2.0, -2.0])
    """
    x = np.asarray(rewards, np.float64)
    p = np.full(len(x), 1 / len(x)) if probabilities is None else np.asarray(probabilities, np.float64)
    _check_rewards(x)
    if not np.isfinite(p).all():
        raise ValueError(f"the probabilities of a group are not finite: {p.tolist()[:4]}")
    if np.isnan(x).any():
        return np.zeros_like(x)
    centred = x - (p @ x)
    deviation = np.sqrt(p @ np.square(centred))
    if deviation <= 1e-6 * max(1.0, float(np.abs(x).max())):
        return np.zeros_like(x)
    return centred / deviation if scale else centred


def _votes(answer: Hashable) -> bool:
    return answer is not None and answer == answer


def _check_rewards(x: np.ndarray) -> None:
    if len(places := np.flatnonzero(np.isinf(x))):
        raise ValueError(f"the reward of sample {places[0]} of {len(x)} is {x[places[0]]}")
