"""Estimates from samples: advantages of a group, and the rate at which at least one of k samples is right."""

import math

import numpy as np
from jaxtyping import Float, Int


def leave_one_out(rewards: Float[np.ndarray, "P K"], *, scale: bool = False) -> Float[np.ndarray, "P K"]:
    """Returns each reward minus the mean of the others of its group (RLOO, arXiv 2402.14740).

    The baseline does not depend on the sample, so the policy gradient stays unbiased. It is K / (K - 1) times the
    reward against the group's mean, GRPO's.

    Args:
      rewards: of K samples of each of P prompts.
      scale: divide by the group's standard deviation, as GRPO (arXiv 2402.03300) does; that is biased, prompts with
        few right or few wrong answers weigh more.

    Returns:
      float64 [P, K]; zeros for a group of equal rewards.

    Raises:
      ValueError: a group of one, or a reward that is not finite.

    Example:
      >>> leave_one_out(np.asarray([[1.0, 0.0, 0.0]])).tolist()
      [[1.0, -0.5, -0.5]]
    """
    x = np.asarray(rewards, np.float64)
    count = x.shape[1]
    if count < 2:
        raise ValueError("a group of one sample has no others to compare with; give at least 2 samples a prompt")
    if not np.isfinite(x).all():
        raise ValueError(f"a reward is {x[~np.isfinite(x)][0]}, not a finite number")
    others = (x.sum(1, keepdims=True) - x) / (count - 1)
    gains = np.where((x == x[:, :1]).all(1, keepdims=True), 0.0, x - others)
    if not scale:
        return gains
    deviation = x.std(1, keepdims=True)
    return gains / np.where(deviation > 0, deviation, 1.0)


def pass_at_k(right: Int[np.ndarray, "P"], samples: int, k: int) -> Float[np.ndarray, "P"]:
    """Estimates for each prompt the probability that at least one of k samples is right, unbiased (arXiv 2107.03374).

    Args:
      right: right ones among `samples` samples.
      samples: drawn for each prompt.
      k: at most `samples`.

    Returns:
      1 - C(samples - right, k) / C(samples, k).

    Raises:
      ValueError: k is not in 1..samples.

    Example:
      >>> pass_at_k(np.asarray([0, 1, 4]), 4, 2).tolist()
      [0.0, 0.5, 1.0]
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples: k must be in 1..{samples}")
    whole = math.comb(samples, k)
    return np.asarray([1.0 - math.comb(samples - int(n), k) / whole for n in right], np.float64)
