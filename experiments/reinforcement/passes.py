"""How good a state is at held-out prompts: the reward of greedy answers, and pass@k of samples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from experiments.reporting.statistics import Interval, bootstrap
from rwkv7_jax.state import State
from state_tuning.reinforcement.estimators import pass_at_k
from state_tuning.reinforcement.learning import Judge
from state_tuning.reinforcement.sampling import Prompts, Sampler, row_keys

NOTHING = -1
"""Stands for a row that fills a batch up."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """Rewards of the answers to each held-out prompt."""

    greedy: list[float]
    sampled: list[list[float]]
    """Of each prompt's samples."""
    texts: list[str]
    """The first greedy answers."""


class PassSummary(TypedDict):
    """Means over held-out prompts, with 95% intervals."""

    reward: Interval
    """Of greedy answers."""
    greedy: Interval
    """Greedy answers that are right."""
    pass_1: Interval
    """A sample is right."""
    pass_k: Interval
    """At least one of k samples is right."""


class Measurer(NamedTuple):
    """Measures states on the same prompts with the same random numbers."""

    greedy: Sampler
    sampler: Sampler
    states: Callable[[PyTree, int], State]
    """(trainable tree, rows) -> the batched initial state"""
    judge: Judge
    prompts: Prompts
    samples: int
    """Of each prompt."""
    rows: int
    """Sequences at once."""
    key: Key[Array, ""]
    tick: Callable[[int], None]
    """Gets the number of prompts that are done."""

    def rewards(self, tree: PyTree, count: int | None = None) -> tuple[list[float], list[str]]:
        """Returns the rewards of the greedy answers to the first prompts, and the answers."""
        found, texts = self._answers(tree, self.greedy, 1, count)
        return found[:, 0].tolist(), [row[0] for row in texts]

    def passes(self, tree: PyTree, kept: int) -> Passes:
        """Returns the rewards of greedy and sampled answers; `kept` greedy answers are kept as text."""
        greedy, texts = self.rewards(tree)
        sampled, _ = self._answers(tree, self.sampler, self.samples, None)
        return Passes(greedy, sampled.tolist(), texts[:kept])

    def _answers(
        self, tree: PyTree, sampler: Sampler, copies: int, count: int | None
    ) -> tuple[np.ndarray, list[list[str]]]:
        """(rewards [prompts, copies], texts) in batches of one shape; the last is filled up with its last prompt."""
        total = len(self.prompts.tokens) if count is None else min(count, len(self.prompts.tokens))
        size = max(1, self.rows // copies)
        rewards, texts = list[float](), list[str]()
        for begin in range(0, total, size):
            index = np.minimum(np.arange(begin, begin + size), total - 1)
            here = min(size, total - begin) * copies
            keys = row_keys(jax.random.fold_in(self.key, begin), size * copies)
            drawn = sampler.draw(self.prompts.take(index), self.states(tree, size), keys, copies)
            texts += drawn.texts[:here]
            rewards += self.judge(np.repeat(index, copies)[:here], drawn.texts[:here]).tolist()
            self.tick(here // copies)
        return np.reshape(rewards, (total, copies)), [texts[i : i + copies] for i in range(0, len(texts), copies)]


def rights(passes: Passes, right: float, k: int) -> dict[str, list[float]]:
    """Returns the values of each prompt that a summary is a mean of.

    Args:
      passes: the rewards.
      right: reward from which an answer counts as right.
      k: of pass@k.
    """
    samples = np.asarray(passes.sampled)
    good = (samples >= right).sum(1)
    return {
        "reward": passes.greedy,
        "greedy": [float(value >= right) for value in passes.greedy],
        "pass_1": pass_at_k(good, samples.shape[1], 1).tolist(),
        "pass_k": pass_at_k(good, samples.shape[1], k).tolist(),
    }


def summarise(passes: Passes, right: float, k: int, seed: int) -> PassSummary:
    """Computes means with 95% intervals over prompts (bootstrap)."""
    return _intervals([rights(passes, right, k)], seed)


def change(before: Passes, after: Passes, right: float, k: int, seed: int) -> PassSummary:
    """Computes the mean change of each value with a paired 95% interval over prompts (bootstrap)."""
    return _intervals([rights(after, right, k), rights(before, right, k)], seed)


def _intervals(values: Sequence[dict[str, list[float]]], seed: int) -> PassSummary:
    def one(name: str) -> Interval:
        first, *others = [part[name] for part in values]
        return bootstrap([[a - b for a, b in zip(first, others[0], strict=True)] if others else first], seed)

    return PassSummary(reward=one("reward"), greedy=one("greedy"), pass_1=one("pass_1"), pass_k=one("pass_k"))
