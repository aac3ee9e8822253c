"""Estimates from samples, against their definitions."""

import itertools

import numpy as np
import pytest

from state_tuning.reinforcement.estimators import leave_one_out, pass_at_k


def test_leave_one_out_is_the_reward_minus_the_others_mean():
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    wanted = [[r - np.mean([x for j, x in enumerate(row) if j != i]) for i, r in enumerate(row)] for row in rewards]
    np.testing.assert_allclose(leave_one_out(rewards), wanted, atol=1e-12)
    np.testing.assert_allclose(leave_one_out(rewards).sum(1), 0, atol=1e-12)
    deviations = rewards.std(1, keepdims=True)
    np.testing.assert_allclose(leave_one_out(rewards, scale=True), wanted / deviations, atol=1e-12)


@pytest.mark.parametrize("scale", [False, True])
def test_equal_rewards_teach_nothing(scale):
    assert not leave_one_out(np.full((2, 3), 0.1), scale=scale).any()


def test_wrong_groups_are_refused():
    with pytest.raises(ValueError, match="group of one"):
        leave_one_out(np.ones((2, 1)))
    with pytest.raises(ValueError, match="is nan, not a finite number"):
        leave_one_out(np.asarray([[0.0, np.nan]]))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    for right in range(6):
        samples = [i < right for i in range(5)]
        wanted = np.mean([any(subset) for subset in itertools.combinations(samples, k)])
        np.testing.assert_allclose(pass_at_k(np.asarray([min(right, 5)]), 5, k), [wanted], atol=1e-12)


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match=r"pass@6 of 5 samples: k must be in 1\.\.5"):
        pass_at_k(np.asarray([1]), 5, 6)
