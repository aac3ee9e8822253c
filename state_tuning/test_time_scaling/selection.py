"""Choosing one of several samples: by vote, or by a scorer. The controls that test-time adaptation has to beat."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

Values = Sequence[float] | np.ndarray


def majority(answers: Sequence[Hashable]) -> int:
    """Returns the index of the first sample whose answer is the most frequent one (arXiv 2203.11171).

    None stands for a sample without an answer and has no vote, NaN likewise. Ties go to the answer met first.
    """
    votes = Counter(answer for answer in answers if answer is not None and answer == answer)
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def best(rewards: Values) -> int:
    """Returns the index of the largest reward, the first among equals; NaN stands for a missing one.

    Raises:
      ValueError: a reward is infinite, or all are missing.
    """
    x = np.asarray(rewards, np.float64)
    _check_rewards(x)
    if np.isnan(x).all():
        raise ValueError(f"none of {len(x)} samples has a reward, so none of them is the best")
    return int(np.nanargmax(x))


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


def _check_rewards(x: np.ndarray) -> None:
    if len(places := np.flatnonzero(np.isinf(x))):
        raise ValueError(f"the reward of sample {places[0]} of {len(x)} is {x[places[0]]}")
