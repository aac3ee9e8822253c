"""No statistic is made of a value that is not finite."""

import math

import numpy as np
import pytest

from experiments.reporting.statistics import (
    ItemValues,
    Mean,
    bootstrap,
    crossed_bootstrap,
    mean,
    mean_of_parts,
    pooled,
    wilson,
)

ONES = np.ones(3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_first_value_that_is_not_finite_is_named(wrong: float) -> None:
    values = [1.0, wrong, math.nan]
    for statistic in (mean, lambda x: bootstrap([x], 0), lambda x: bootstrap([[1.0], x], 0)):
        with pytest.raises(ValueError, match=f"^value 2 of 3 is {wrong}, not a finite number$"):
            statistic(values)
    with pytest.raises(ValueError, match=f"^value 2 of 3 is {wrong}"):
        bootstrap([[1.0, 2.0, 3.0]], 0, [values])
    for statistic in (mean_of_parts, lambda x: crossed_bootstrap([x], 0)):
        with pytest.raises(ValueError, match=f"^value 2, 3 of 6 is {wrong}"):
            statistic(ItemValues(np.array([ONES, [0.0, 1.0, wrong]]), ONES))
    with pytest.raises(ValueError, match=f"^number of parts 1 of 3 is {wrong}"):
        mean_of_parts(ItemValues(np.array([ONES]), np.array([wrong, 1.0, 1.0])))
    with pytest.raises(ValueError, match=f"^mean 1 of 2 is {wrong}"):
        pooled([Mean(wrong, 1.0, 3), Mean(1.0, 1.0, 3)])


def test_a_single_record_has_no_error_and_can_be_pooled() -> None:
    assert mean([2.0])[::2] == (2.0, 1)
    assert math.isnan(mean([2.0]).error)
    assert pooled([mean([2.0]), mean([1.0, 3.0])]).value == 2.0
    with pytest.raises(ValueError, match="error 1 of 1 is nan"):
        pooled([mean([2.0]), Mean(1.0, math.nan, 2)])


@pytest.mark.parametrize("right", [-1, 4])
def test_more_successes_than_trials_are_refused(right: int) -> None:
    with pytest.raises(ValueError, match=f"{right} successes in 3 trials"):
        wilson(right, 3)
