"""The choice of a learning rate: the bottom of the valley, and the words that say so."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.choosing import rate
from experiments.study.learning_rates import LADDER


@given(st.integers(0, len(LADDER) - 1), st.sampled_from([1.0, 0.3, 0.01]))
def test_the_bottom_of_a_valley_is_found_from_any_default(bottom, default):
    tried = []

    def loss(value):
        tried.append(value)
        return abs(LADDER.index(value) - bottom) + 1.0

    choice = rate.choose(loss, default)
    assert choice.rate == LADDER[bottom]
    assert len(tried) == len(set(tried)) == len(choice.losses)
    neighbours = {LADDER[i] for i in (bottom - 1, bottom, bottom + 1) if 0 <= i < len(LADDER)}
    assert neighbours <= set(tried)


def test_a_rate_at_which_tuning_diverges_is_infinitely_bad():
    choice = rate.choose(lambda value: math.nan if value >= 1 else value, 1.0)
    assert choice.losses[1.0] == math.inf
    assert choice.rate == LADDER[0]
    with pytest.raises(ValueError, match="diverges at every rate"):
        rate.choose(lambda value: math.inf, 1.0)


def test_the_line_says_what_was_tried_and_why():
    choice = rate.Choice(1.0, {1.0: 0.5, 0.3: 0.75, 3.0: math.inf})
    line = "tune.learning_rate auto: 1, the least of 0.3: 0.7500, 1: 0.5000, 3: inf "
    line += "(3 runs of 50 of 200 steps, loss on 64 records of the validation split)"
    assert rate.told(choice, 50, 200, 64, "the validation split") == line
    end = rate.told(rate.Choice(10.0, {3.0: 1.0, 10.0: 0.5}), 50, 200, 64, "the training file")
    assert end.endswith("; the end of the ladder)")


@pytest.mark.parametrize(("steps", "short"), [(1, 1), (25, 25), (60, 25), (200, 50), (400, 100), (10**6, 100)])
def test_short_runs_are_short(steps, short):
    assert rate.short_steps(steps) == short


@given(st.floats(1e-4, 10))
def test_the_nearest_rate_is_nearest_in_ratio(value):
    found = rate.nearest(value)
    assert all(abs(math.log(found / value)) <= abs(math.log(one / value)) + 1e-12 for one in LADDER)
