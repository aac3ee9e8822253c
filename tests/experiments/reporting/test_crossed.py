"""Intervals over items crossed with seeds: how often they hold the truth, and the formula anew."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.reporting.crossed import crossed_interval, spread
from experiments.reporting.statistics import ItemValues, crossed_bootstrap, paired_difference

TRIALS = 600


def sample(rng, seeds, items, by_seed, by_item, rest=1.0):
    table = by_seed * rng.normal(size=(seeds, 1)) + by_item * rng.normal(size=items)
    return ItemValues(table + rest * rng.normal(size=(seeds, items)), np.ones(items))


@pytest.mark.parametrize(("by_seed", "by_item"), [(0.3, 0.0), (0.06, 0.5), (0.0, 1.0), (0.0, 0.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says_whatever_varies(by_seed, by_item):
    """By chance 600 trials of 95% give less than 92.5% once in 500 times."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(TRIALS):
        found = crossed_interval([sample(rng, 3, 60, by_seed, by_item)])
        held += found.low <= 0 <= found.high
    assert held / TRIALS > 0.925


def test_the_bootstrap_over_three_seeds_does_not():
    rng = np.random.default_rng(1)
    tables = [sample(rng, 3, 60, 0.5, 0.0) for _ in range(200)]
    boots = [crossed_bootstrap([one], 0, 300) for one in tables]
    assert sum(one.low <= 0 <= one.high for one in boots) / len(boots) < 0.9
    assert sum(one.low <= 0 <= one.high for one in (crossed_interval([x]) for x in tables)) / len(boots) > 0.92


def test_where_seeds_alone_differ_it_is_students_interval_over_the_seeds():
    means = np.array([0.1, 0.5, 0.4])
    found = crossed_interval([ItemValues(np.repeat(means[:, None], 50, axis=1), np.ones(50))])
    low, high = stats.t.interval(0.95, 2, means.mean(), means.std(ddof=1) / math.sqrt(3))
    np.testing.assert_allclose(found, (means.mean(), low, high), rtol=1e-6)


def test_with_one_seed_it_is_students_interval_over_the_items():
    values = np.random.default_rng(2).normal(size=40)
    found = crossed_interval([ItemValues(values[None], np.ones(40))])
    low, high = stats.t.interval(0.95, 39, values.mean(), values.std(ddof=1) / math.sqrt(40))
    np.testing.assert_allclose(found, (values.mean(), low, high), rtol=1e-9)


@given(st.integers(2, 6), st.integers(3, 30), st.integers(0, 10**6))
def test_the_variance_is_that_of_a_two_way_table(seeds, items, seed):
    y = np.random.default_rng(seed).normal(size=(seeds, items))
    grand = y.mean()
    of_seeds = sum(items * (row.mean() - grand) ** 2 for row in y) / (seeds - 1)
    of_items = sum(seeds * (column.mean() - grand) ** 2 for column in y.T) / (items - 1)
    of_rest = sum((y[s, i] - y[s].mean() - y[:, i].mean() + grand) ** 2 for s in range(seeds) for i in range(items)) / (
        (seeds - 1) * (items - 1)
    )
    wanted = max(of_seeds + of_items - of_rest, of_seeds, of_items) / (seeds * items)
    assert spread(y).variance == pytest.approx(wanted)


def test_a_loss_is_a_ratio_whose_interval_covers_too():
    """Nats over tokens, where long items have more of both."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(TRIALS):
        tokens = rng.integers(1, 20, 80).astype(float)
        seeds = 0.05 * rng.normal(size=(3, 1))
        nats = tokens * (1.0 + seeds + 0.3 * rng.normal(size=80)) + rng.normal(size=(3, 80))
        found = crossed_interval([ItemValues(nats, tokens)])
        held += found.low <= 1.0 <= found.high
    assert held / TRIALS > 0.925


def test_pairing_removes_what_both_have():
    rng = np.random.default_rng(4)
    common = 3 * rng.normal(size=50)
    a, b = (ItemValues(common + shift + 0.1 * rng.normal(size=(3, 50)), np.ones(50)) for shift in (0.2, 0.0))
    paired, alone = crossed_interval([paired_difference(a, b)]), crossed_interval([a])
    assert paired.low > 0.1
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_the_mean_over_benchmarks_is_narrower_than_each():
    rng = np.random.default_rng(5)
    samples = [sample(rng, 3, 100, 0.0, 1.0) for _ in range(4)]
    whole = crossed_interval(samples)
    assert whole.mean == pytest.approx(np.mean([one.values.mean() for one in samples]))
    assert whole.high - whole.low < min(x.high - x.low for x in (crossed_interval([one]) for one in samples))


def test_equal_values_have_no_width_and_a_single_item_has_no_interval():
    assert crossed_interval([ItemValues(np.ones((3, 5)), np.ones(5))]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="two items at least"):
        crossed_interval([ItemValues(np.ones((3, 1)), np.ones(1))])
    with pytest.raises(ValueError, match="is nan, not a finite number"):
        crossed_interval([ItemValues(np.array([[1.0, math.nan]]), np.ones(2))])
