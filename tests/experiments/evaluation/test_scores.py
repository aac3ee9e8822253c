"""Comparisons say when there are too few records, and are not made of scores that are not finite."""

import math

import pytest

from experiments.evaluation import scores, suite


@pytest.fixture(scope="module")
def bench():
    return suite.load(["pocket:winogrande"], suite.Options(limit=12))[0]


def samples(values):
    return [
        {"part": "winogrande", "index": i, "state": state, "results": [], "scores": {"acc": value}}
        for state, shift in (("none", 0.0), ("tuned", 1.0))
        for i, value in enumerate(values if shift else [0.0] * len(values))
    ]


@pytest.mark.parametrize(
    ("count", "end"), [(2, "; 2 records are too few for an interval to say much"), (10, "= 0.00195")]
)
def test_too_few_records_are_said(bench, count, end):
    (line,) = scores.comparison_lines(bench, samples([1.0] * count), ["none", "tuned"])
    assert line.endswith(end)
    assert f"{count} answers better, 0 worse" in line


def test_scores_that_are_not_finite_are_not_compared(bench):
    for what in (scores.comparison_lines, scores.table_rows, scores.summary):
        with pytest.raises(ValueError, match="value 2 of 3 is nan, not a finite number"):
            what(bench, samples([1.0, math.nan, 0.0]), ["none", "tuned"])
