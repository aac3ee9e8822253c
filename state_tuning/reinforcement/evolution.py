"""Evolution strategies on an initial state: no gradient of the model, only rewards (Salimans et al., arXiv 1703.03864).

Each row of a batch carries an S_0 of its own, S_0 + sigma E or S_0 - sigma E, so a population is one batched
inference. With f the reward, the gradient of the mean reward under such noise is estimated from n pairs by

    g = 1 / n sum_i (f(S_0 + sigma E_i) - f(S_0 - sigma E_i)) / (2 sigma) E_i

Both members of a pair answer the same prompt with the same random numbers, so that what they share cancels. E is of low
rank in each head, E = A B^T / sqrt(rank) with independent normal entries: E E^T has the mean of a full Gaussian's, so g
stays unbiased for a quadratic f, while A and B are a small part of the numbers. sigma is a part of the size that S_0's
entries have in their layer. Weights are only read: quantised ones do, and so does any reward.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import pin, whole
from rwkv7_jax.state import State, zero_state
from state_tuning.core import train
from state_tuning.core.train import Method, Metrics, TuneConfig, TuneState

__all__ = [
    "ESConfig",
    "LowRank",
    "Population",
    "draw_noise",
    "gradient",
    "make_population",
    "noise_sizes",
    "perturbed",
]


@dataclasses.dataclass(frozen=True)
class ESConfig:
    """Hyper-parameters of the population."""

    sigma: float = 0.1
    """Size of the noise, as a part of the root mean square of S_0's entries in a layer at the start."""
    rank: int = 1
    """Of the noise in each head; 0: noise of full rank."""

    def __post_init__(self):
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma is {self.sigma}, it must be above 0 and finite")
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}, it must not be negative")


class LowRank(NamedTuple):
    """Noise a b^T / sqrt(rank) for n pairs, one matrix a head."""

    a: Float[Array, "L N H V rank"]
    """Independent standard normal entries, value axis before the rank."""
    b: Float[Array, "L N H K rank"]
    """The same, key axis before the rank."""


Noise = PyTree
"""A tree like the trainable one, its leaves LowRank, or arrays [L, N, ...] of full rank."""


def draw_noise(key: Key[Array, ""], tree: PyTree, pairs: int, rank: int) -> Noise:
    """Draws E for each pair: entries of mean 0 and variance 1, uncorrelated.

    Args:
      key: a random key.
      tree: the trainable tree; leaves [L, ...], matrices [L, H, V, K].
      pairs: N.
      rank: of the noise of matrices; 0 is full rank. Other leaves have independent normal entries.

    Returns:
      A tree like the trainable one, its leaves `LowRank`, or arrays [L, N, ...] of full rank, float32.
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))

    def one(key: Array, leaf: Array) -> LowRank | Array:
        if leaf.ndim != 4 or not rank:
            return jax.random.normal(key, (leaf.shape[0], pairs, *leaf.shape[1:]), jnp.float32)
        left, right = jax.random.split(key)
        head = (leaf.shape[0], pairs, *leaf.shape[1:-2])
        return LowRank(
            jax.random.normal(left, (*head, leaf.shape[-2], rank), jnp.float32),
            jax.random.normal(right, (*head, leaf.shape[-1], rank), jnp.float32),
        )

    return jax.tree.unflatten(structure, [one(keys[i], leaf) for i, leaf in enumerate(leaves)])


def noise_sizes(tree: PyTree, sigma: float) -> PyTree:
    """Computes the standard deviation of the noise of each leaf and layer.

    Args:
      tree: the trainable tree at the start; leaves [L, ...].
      sigma: the noise as a part of the leaf's size.

    Returns:
      A tree like it, its leaves [L]: sigma times the root mean square of the entries; of a zero layer sigma itself.

    Example:
      >>> noise_sizes({"s": jnp.array([[3.0, 3.0], [0.0, 0.0]])}, 0.5)["s"].tolist()
      [1.5, 0.5]
    """

    def one(leaf: Array) -> Float[Array, "L"]:
        size = jnp.sqrt(jnp.mean(jnp.square(leaf.reshape(leaf.shape[0], -1)), axis=1))
        return sigma * jnp.where(size > 0, size, 1.0)

    return jax.tree.map(one, tree)


def perturbed(tree: PyTree, noise: Noise, sizes: PyTree) -> PyTree:
    """Makes the trees of a population: of pair i the rows 2 i (plus its noise) and 2 i + 1 (minus it).

    Args:
      tree: the trainable tree.
      noise: of N pairs.
      sizes: of the noise, by leaf and layer, see `noise_sizes`.

    Returns:
      A tree like `tree`, its leaves [L, 2 N, ...].
    """

    def one(leaf: Array, e: LowRank | Array, size: Array) -> Array:
        if isinstance(e, LowRank):
            made = jnp.einsum("lnhvr,lnhkr->lnhvk", e.a, e.b, precision="highest") / math.sqrt(e.a.shape[-1])
        else:
            made = e
        step = _by_layer(size, made.ndim) * made
        both = jnp.stack([leaf[:, None] + step, leaf[:, None] - step], axis=2)
        return both.reshape(leaf.shape[0], -1, *leaf.shape[1:])

    return jax.tree.map(one, tree, noise, sizes)


def gradient(tree: PyTree, noise: Noise, sizes: PyTree, rewards: Float[Array, "R"]) -> PyTree:
    """Estimates the gradient of the mean reward.

    Args:
      tree: the trainable tree.
      noise: of N pairs.
      sizes: of the noise.
      rewards: of the R = 2 N rows of `perturbed`.

    Returns:
      A tree like the trainable one.
    """
    slope = (rewards[0::2] - rewards[1::2]) / (2.0 * len(rewards[0::2]))

    def one(leaf: Array, e: LowRank | Array, size: Array) -> Array:
        if isinstance(e, LowRank):
            weighted = e.a * slope[None, :, None, None, None]
            made = jnp.einsum("lnhvr,lnhkr->lhvk", weighted, e.b, precision="highest") / math.sqrt(e.a.shape[-1])
        else:
            made = jnp.tensordot(slope, jnp.moveaxis(e, 1, 0), 1, precision="highest")
        return made / _by_layer(size, leaf.ndim)

    return jax.tree.map(one, tree, noise, sizes)


class Population(NamedTuple):
    """The jitted parts of evolution strategies; make them once."""

    states: Callable[[PyTree, PyTree, Key[Array, ""], int], State]
    """(trainable tree, sizes, key, pairs) -> the batched initial state of the population"""
    update: Callable[[TuneState, PyTree, Key[Array, ""], Float[Array | np.ndarray, "R"]], tuple[TuneState, Metrics]]
    """(state, sizes, the same key, rewards of the rows) -> (state, metrics of `train.guarded_update`); the loss is the
    mean reward with its sign changed"""


def make_population(
    model: RWKV7, optimizer: optax.GradientTransformation, tune: TuneConfig, method: Method, config: ESConfig
) -> Population:
    """Returns the jitted parts.

    Args:
      model: the model's description.
      optimizer: how the trainable tree moves.
      tune: l2 is used.
      method: what is trained; it has to stand for a state (`full`).
      config: of the noise.

    Returns:
      The parts.

    Raises:
      ValueError: the method trains no state.
    """
    full = method.full
    if full is None:
        raise ValueError("evolution strategies move an initial state, and this method trains none")
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(lambda: zero_state(model.config, None)))

    def states(tree: PyTree, sizes: PyTree, key: Array, pairs: int) -> State:
        rows = perturbed(tree, draw_noise(key, tree, pairs, config.rank), sizes)
        made = jax.vmap(full, in_axes=1, out_axes=1)(rows)
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), made, dtypes)

    def update(tuned: TuneState, sizes: PyTree, key: Array, rewards: Array) -> tuple[TuneState, Metrics]:
        noise = draw_noise(key, tuned.trainable, rewards.shape[0] // 2, config.rank)
        found = gradient(tuned.trainable, noise, sizes, rewards)
        grads = jax.tree.map(lambda g, p: 2.0 * tune.l2 * p - g, found, tuned.trainable)
        tuned, metrics = train.guarded_update(optimizer, tuned, -rewards.mean(), grads)
        return pin(tuned), whole(metrics)

    return Population(jax.jit(states, static_argnums=3), jax.jit(update, donate_argnums=0))


def _by_layer(size: Float[Array, "L"], ndim: int) -> Array:
    return size.reshape(-1, *[1] * (ndim - 1))
