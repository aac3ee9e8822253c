"""Evolution strategies against their formulas: pairs, the gradient of a quadratic, low-rank noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax.state import State
from state_tuning.core import train
from state_tuning.reinforcement import evolution
from state_tuning.reinforcement.evolution import ESConfig, LowRank
from tests.helpers import MODEL, random_state

SHAPE = (2, 1, 2, 3)
"""[L, H, V, K]"""


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {"s": jnp.asarray(rng.normal(size=SHAPE), jnp.float32), "hole": None,
            "shift": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)}  # fmt: skip


def noise_as_arrays(noise):
    """E of every pair in full, [N, ...] a leaf, from the definition."""
    low = noise["s"]
    full = low
    if isinstance(low, LowRank):
        full = sum(
            np.asarray(low.a)[..., :, None, r] * np.asarray(low.b)[..., None, :, r] for r in range(low.a.shape[-1])
        ) / np.sqrt(low.a.shape[-1])
    return {"s": np.moveaxis(np.asarray(full), 1, 0), "shift": np.moveaxis(np.asarray(noise["shift"]), 1, 0)}


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_pairs_lie_on_both_sides(rank):
    start, noise = tree(), evolution.draw_noise(jax.random.key(0), tree(), 5, rank)
    sizes = evolution.noise_sizes(start, 0.2)
    rows = evolution.perturbed(start, noise, sizes)
    e = noise_as_arrays(noise)
    for name in ("s", "shift"):
        flat = np.asarray(start[name]).reshape(2, -1)
        size = 0.2 * np.sqrt(np.mean(flat**2, axis=1)).reshape(2, *[1] * (np.ndim(start[name]) - 1))
        for pair in range(5):
            for row, sign in ((2 * pair, 1), (2 * pair + 1, -1)):
                wanted = np.asarray(start[name]) + sign * size * e[name][pair]
                np.testing.assert_allclose(rows[name][:, row], wanted, atol=1e-5)
    assert rows["hole"] is None


def test_a_zero_layer_has_noise_of_size_sigma():
    sizes = evolution.noise_sizes({"s": jnp.zeros(SHAPE).at[1].set(3.0)}, 0.5)
    np.testing.assert_allclose(sizes["s"], [0.5, 1.5])


def quadratic(rng, size):
    """(f, its gradient) with a random symmetric matrix."""
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    matrix, linear = root + root.T, rng.normal(size=size)
    return lambda x: 0.5 * x @ matrix @ x + linear @ x + 2.0, lambda x: matrix @ x + linear


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_gradient_of_a_quadratic_is_unbiased(rank):
    """Also the estimate itself against its formula, written anew."""
    pairs, start = 20000, {"s": tree()["s"]}
    f, slope = quadratic(np.random.default_rng(1), 12)
    noise = evolution.draw_noise(jax.random.key(rank), start, pairs, rank)
    sizes = evolution.noise_sizes(start, 0.3)
    rows = np.asarray(evolution.perturbed(start, noise, sizes)["s"], np.float64)
    rewards = np.asarray([f(rows[:, r].reshape(-1)) for r in range(2 * pairs)])
    found = evolution.gradient(start, noise, sizes, jnp.asarray(rewards, jnp.float32))["s"]
    size = np.asarray(sizes["s"], np.float64).reshape(2, 1, 1, 1)
    e = (rows[:, 0::2] - rows[:, 1::2]) / (2 * size[:, None])
    each = np.moveaxis(e, 1, 0) / size * ((rewards[0::2] - rewards[1::2]) / 2).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(found, each.mean(0), rtol=2e-3, atol=2e-2)
    error = each.std(0) / np.sqrt(pairs)
    wanted = slope(np.asarray(start["s"], np.float64).reshape(-1)).reshape(SHAPE)
    assert (np.abs(each.mean(0) - wanted) < 5 * error).all()
    assert (error < 0.2 * np.abs(wanted).max()).all()


def test_low_rank_noise_has_unit_covariance():
    noise = evolution.draw_noise(jax.random.key(3), {"s": jnp.zeros(SHAPE)}, 40000, 1)
    low = noise["s"]
    e = np.einsum("lnhvr,lnhkr->nlhvk", low.a, low.b).reshape(40000, -1)
    np.testing.assert_allclose(e.T @ e / len(e), np.eye(12), atol=0.09)
    np.testing.assert_allclose(e.mean(0), 0, atol=0.03)


def test_equal_rewards_give_no_gradient():
    start, noise = tree(), evolution.draw_noise(jax.random.key(0), tree(), 4, 1)
    found = evolution.gradient(start, noise, evolution.noise_sizes(start, 0.1), jnp.ones(8))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_the_update_follows_the_optimiser_and_the_penalty():
    tune = train.TuneConfig(l2=0.1)
    method, optimizer = train.standard(MODEL, tune), optax.sgd(1.0)
    population = evolution.make_population(MODEL, optimizer, tune, method, ESConfig(sigma=0.2))
    start = State(None, None, random_state(2).wkv)
    sizes, key = evolution.noise_sizes(start, 0.2), jax.random.key(5)
    states = population.states(start, sizes, key, 3)
    assert states.wkv.shape[1] == 6
    assert not np.any(states.att_shift)
    np.testing.assert_allclose(states.wkv[:, 0] + states.wkv[:, 1], 2 * start.wkv, atol=1e-5)
    rewards = jnp.asarray([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    tuned, metrics = population.update(train.init(optimizer, start), sizes, key, rewards)
    step = (states.wkv[:, 0] - states.wkv[:, 1] - states.wkv[:, 4] + states.wkv[:, 5]) / 2
    wanted = step / (2 * 3) / jnp.square(sizes.wkv).reshape(-1, 1, 1, 1) - 0.2 * start.wkv
    np.testing.assert_allclose(tuned.trainable.wkv, start.wkv + wanted, rtol=1e-3, atol=1e-3)
    assert float(metrics["loss"]) == pytest.approx(-1 / 3)
    assert bool(metrics["applied"])
    assert int(tuned.step) == 1


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="sigma is 0"):
        ESConfig(sigma=0.0)
    with pytest.raises(ValueError, match="rank is -1"):
        ESConfig(rank=-1)
    bare = train.Method(lambda: None, lambda tree, size: tree)
    with pytest.raises(ValueError, match="trains none"):
        evolution.make_population(MODEL, optax.sgd(1.0), train.TuneConfig(), bare, ESConfig())
