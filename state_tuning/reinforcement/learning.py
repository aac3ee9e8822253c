"""A step of learning from rewards: draw samples, let a judge score them, move the state.

    step = grpo_step(Learner(lm, method, tune, optimizer, sampler, samples, key, judge), GRPOConfig(), start)
    tuned, metrics = step(tuned, Asked(prompts, index, number))

Steps run on the host and call compiled programs of fixed shapes. With several processes (`jax.distributed`) all of them
call the step with the same prompts, and the judge has to return the same rewards in all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from rwkv7_jax.language_model import LanguageModel
from state_tuning.core.train import Method, TuneConfig, TuneState
from state_tuning.reinforcement import evolution, grpo
from state_tuning.reinforcement.estimators import leave_one_out
from state_tuning.reinforcement.evolution import ESConfig
from state_tuning.reinforcement.grpo import GRPOConfig
from state_tuning.reinforcement.sampling import Drawn, Prompts, Sampler, on_rows, row_keys

__all__ = ["Asked", "Learner", "Step", "evolution_step", "grpo_step"]

Measures = dict[str, ArrayLike]
Judge = Callable[[Int[np.ndarray, "R"], Sequence[str]], Float[np.ndarray, "R"]]
"""(number of the problem of each sample, their texts) -> their rewards, finite"""


Take = Callable[[TuneState, "Asked", Array], tuple[TuneState, Measures, Drawn]]
"""(state, prompts, key) -> (state, metrics, samples)"""


class Asked(NamedTuple):
    """A batch of prompts, on the host."""

    prompts: Prompts
    """B of them, padded to one length."""
    index: Int[np.ndarray, "B"]
    """Numbers of the problems, for the judge."""
    number: Int[np.ndarray, ""]
    """Of the batch; its random numbers depend on it and the key alone."""


class Learner(NamedTuple):
    """What both ways to learn have in common."""

    lm: LanguageModel
    """The frozen model."""
    method: Method
    """What is trained, and how it becomes the initial state."""
    tune: TuneConfig
    """Settings, of which accumulate, loss_chunk and l2 are used."""
    optimizer: optax.GradientTransformation
    """How the trainable tree moves."""
    sampler: Sampler
    """Draws the samples, on the same model."""
    samples: int
    """Samples a prompt; for evolution strategies members of the population, an even number."""
    key: Key[Array, ""]
    """Of all random numbers."""
    judge: Judge
    """(number of the problem of each sample [R], their texts) -> their rewards [R], finite."""


class Step:
    """(state, prompts) -> (state, metrics); the state is donated. `tokens` counts what the last call sampled.

    Args:
      take: (state, prompts, key) -> (state, metrics, samples), as `grpo_step` and `evolution_step` make it.
      key: of all steps; that of one is folded from it and the batch's number.
    """

    def __init__(self, take: Take, key: Key[Array, ""]):
        self.take, self.key, self.tokens = take, key, 0.0

    def __call__(self, tuned: TuneState, asked: Asked) -> tuple[TuneState, Measures]:
        """Takes one step.

        Args:
          tuned: the state before it, donated.
          asked: the prompts.

        Returns:
          (the state after it, metrics). Metrics besides those of the update: reward (mean), ended (part of the samples
          that ended by themselves), length (tokens of a sample).
        """
        with jax.transfer_guard("allow"):
            key = jax.random.fold_in(self.key, int(asked.number))
            tuned, metrics, drawn = self.take(tuned, asked, key)
        self.tokens = float(drawn.lengths.sum())
        return tuned, {**metrics, "ended": np.mean(drawn.finished), "length": np.mean(drawn.lengths)}


def grpo_step(learner: Learner, config: GRPOConfig, start: PyTree) -> Step:
    """Returns a step of GRPO.

    Args:
      learner: what is shared; its sampler's temperature must be that of `config`.
      config: of the loss.
      start: the trainable tree whose policy the KL is measured from.

    Returns:
      The step. Further metrics: kl, clipped, and mixed, the part of the prompts whose samples differ in reward (the
      others teach nothing).

    Raises:
      ValueError: fewer than two samples a prompt.
    """
    if learner.samples < 2:
        raise ValueError(f"samples is {learner.samples}; GRPO compares at least 2 samples of each prompt")
    lm, copies = learner.lm, learner.samples
    update = grpo.make_update(lm.model, learner.optimizer, learner.tune, learner.method, config)
    states = jax.jit(learner.method.graft, static_argnums=1)

    def take(tuned: TuneState, asked: Asked, key: Array) -> tuple[TuneState, Measures, Drawn]:
        count = len(asked.index)
        keys = row_keys(key, count * copies)
        drawn = learner.sampler.draw(asked.prompts, states(tuned.trainable, count), keys, copies)
        rewards = learner.judge(np.repeat(asked.index, copies), drawn.texts).reshape(count, copies)
        batch = grpo.rollouts(asked.prompts, drawn, leave_one_out(rewards, scale=config.scale).reshape(-1))
        tuned, metrics = update(lm.params, tuned, start, on_rows(batch))
        mixed = np.mean((rewards != rewards[:, :1]).any(1))
        return tuned, {**metrics, "reward": np.mean(rewards), "mixed": mixed}, drawn

    return Step(take, learner.key)


def evolution_step(learner: Learner, config: ESConfig, start: PyTree) -> Step:
    """Returns a step of evolution strategies.

    Args:
      learner: what is shared.
      config: of the noise.
      start: the trainable tree whose size sigma is a part of.

    Returns:
      The step. Further metric: mixed, the part of the pairs whose members differ in reward (the others teach nothing).

    Raises:
      ValueError: an odd number of samples a prompt.
    """
    copies = learner.samples
    if copies < 2 or copies % 2:
        raise ValueError(f"samples is {copies}; evolution strategies need pairs: an even number of at least 2")
    population = evolution.make_population(learner.lm.model, learner.optimizer, learner.tune, learner.method, config)
    sizes = evolution.noise_sizes(start, config.sigma)

    def take(tuned: TuneState, asked: Asked, key: Array) -> tuple[TuneState, Measures, Drawn]:
        rows = len(asked.index) * copies
        noise, chance = jax.random.split(key)
        prompts = asked.prompts.take(np.repeat(np.arange(len(asked.index)), copies))
        state = population.states(tuned.trainable, sizes, noise, rows // 2)
        drawn = learner.sampler.draw(prompts, state, row_keys(chance, rows, 2))
        rewards = learner.judge(np.repeat(asked.index, copies), drawn.texts)
        tuned, metrics = population.update(tuned, sizes, noise, np.asarray(rewards, np.float32))
        mixed = np.mean(rewards[0::2] != rewards[1::2])
        return tuned, {**metrics, "reward": np.mean(rewards), "mixed": mixed}, drawn

    return Step(take, learner.key)
