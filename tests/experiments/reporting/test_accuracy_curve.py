"""The table of test-time scaling."""

import pytest

from experiments.reporting.accuracy_curve import table


@pytest.mark.parametrize(("problems", "said"), [(3, True), (10, False)])
def test_intervals_over_very_few_problems_are_remarked(problems, said):
    assert (f"too few problems for an interval to say much: {problems}" in table([], [], problems)) == said
