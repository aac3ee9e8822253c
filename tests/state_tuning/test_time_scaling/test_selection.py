"""Choosing among samples: votes with weights, their limits, and what has no vote."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_tuning.test_time_scaling import selection

SAMPLES = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 0)), min_size=1, max_size=9)


@given(SAMPLES, st.floats(0, 8))
def test_the_answer_of_a_vote_has_the_largest_sum_of_weights(samples, weight):
    answers, scores = zip(*samples, strict=True)
    sums = {a: sum(np.exp(weight * s) for b, s in samples if b == a) for a in answers}
    chosen = selection.weighted_vote(answers, scores, weight)
    assert sums[answers[chosen]] >= max(sums.values()) * (1 - 1e-9)
    assert scores[chosen] == max(s for a, s in samples if a == answers[chosen])


@given(SAMPLES)
def test_without_weight_it_is_the_majority_and_with_a_huge_one_the_best(samples):
    answers, scores = zip(*samples, strict=True)
    even = selection.weighted_vote(answers, scores, 0.0)
    assert answers.count(answers[even]) == max(map(answers.count, answers))
    if max(scores) - sorted(scores)[max(-2, -len(scores))] > 0.1 or len(scores) == 1:
        assert selection.weighted_vote(answers, scores, 1000.0) == selection.best(scores)


def test_what_has_no_answer_or_no_score_has_no_vote():
    nan = float("nan")
    assert selection.weighted_vote([None, "a", nan], [0.0, -9.0, 0.0], 4.0) == 1
    assert selection.weighted_vote(["a", "b", "b"], [nan, -3.0, -2.0], 4.0) == 2
    assert selection.weighted_vote([None, None], [-2.0, -1.0], 4.0) == 1
    assert selection.weighted_vote(["a", "b", "b"], [nan] * 3, 4.0) == 1
    assert selection.weighted_vote(["a", "b"], [-3000.0, -2000.0], 4.0) == 1
    with pytest.raises(ValueError, match="the reward of sample 1 of 2 is inf"):
        selection.weighted_vote(["a", "b"], [0.0, np.inf], 1.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_leave_one_out_takes_the_mean_of_the_others(rewards):
    x = np.asarray(rewards)
    wanted = [one - np.delete(x, i).mean() for i, one in enumerate(x)]
    np.testing.assert_allclose(selection.leave_one_out(rewards), wanted, atol=1e-9)


def test_a_sample_alone_or_a_missing_reward_moves_nothing():
    np.testing.assert_array_equal(selection.leave_one_out([3.0]), [0.0])
    np.testing.assert_array_equal(selection.leave_one_out([3.0, np.nan]), [0.0, 0.0])


def test_agreement_is_a_share_of_all_samples():
    assert selection.agreement(["a", "a", "b", None]) == 0.5
    assert selection.agreement([None, float("nan")]) == 0.0


def test_a_pool_grows_and_votes():
    pool = selection.Pool().plus(["x", "y"], ["1", "2"], [-1.0, -0.9], [(3, 9)] * 2)
    pool = pool.plus(["z"], ["1"], [-1.1], [(4, 8)])
    assert pool.tokens == ((3, 9), (3, 9), (4, 8))
    assert pool.voted(1.0) == "x"
    assert pool.voted(100.0) == "y"
