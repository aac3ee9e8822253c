"""Numbers of learning curves, their formulas stated anew."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reporting.crossed import crossed_interval
from experiments.reporting.statistics import ItemValues
from experiments.study.curves import summary
from experiments.study.curves.plan import VANILLA, Place


def cell(row, seed, right, nll=None, steps=0, **more):
    nll = [1.0] * len(right) if nll is None else nll
    return {
        "row": row, "seed": seed, "steps": steps, "rate": 1.0, "nll": nll, "tokens": [2] * len(right),
        "scores": {"acc": right}, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "target", "steps"),
    [
        ([(0, 0.2), (24, 0.4), (99, 0.9)], 0.4, 24.0),
        ([(0, 0.2), (24, 0.4), (99, 0.9)], 0.2, 0.0),
        ([(0, 0.2), (24, 0.4), (99, 0.9)], 0.95, None),
        ([(0, 0.0), (3, 1.0)], 0.5, 1.0),
        ([(25, 0.5)], 0.3, 25.0),
        ([(0, 0.3), (25, 0.1), (100, 0.5)], 0.4, math.expm1(math.log(26) + 0.75 * (math.log(101) - math.log(26)))),
        ([], 0.1, None),
    ],
)
def test_the_time_to_an_accuracy_is_where_the_curve_first_has_it(curve, target, steps):
    assert summary.time_to(curve, target) == (None if steps is None else pytest.approx(steps))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_the_time_lies_between_the_points_around_it_and_the_curve_has_the_value_there(values, target):
    curve = [(4**i - 1, value) for i, value in enumerate(values)]
    steps = summary.time_to(curve, target)
    if steps is None:
        assert max(values) < target
        return
    x, y = [math.log1p(s) for s, _ in curve], values
    assert np.interp(math.log1p(steps), x, y) == pytest.approx(target) or steps == 0
    assert all(value < target for s, value in curve if s < steps - 1e-6)


def test_the_target_is_nine_tenths_of_the_best_of_all_rows():
    found = summary.points(
        [
            (Place(VANILLA, "arc", 0), cell(VANILLA, 0, [0, 0, 0, 1])),
            (Place("slow", "arc", 100), cell("slow", 0, [0, 1, 1, 1], steps=100)),
            (Place("fast", "arc", 25), cell("fast", 0, [1, 1, 1, 1], steps=20)),
            (Place("other", "gsm8k", 25), cell("other", 0, [1, 1, 1, 1], steps=20)),
        ]
    )
    target, times = summary.reached(found, ("slow", "fast", "other"), "arc", "acc", {"fast": 0.5})
    assert target == pytest.approx(0.9)
    assert times["slow"] is None
    assert "other" not in times
    share = (0.9 - 0.25) / 0.75
    steps = math.expm1(share * math.log(21))
    assert times["fast"] == (pytest.approx(steps), pytest.approx(0.5 * steps))


def test_pairs_are_of_the_seeds_that_both_have():
    rng = np.random.default_rng(0)
    right = {(row, seed): rng.integers(0, 2, 30).tolist() for row in ("standard", "dbp") for seed in (0, 1, 2)}
    there = {key: x for key, x in right.items() if key != ("dbp", 1)}
    cells = [(Place(row, "arc", 25), cell(row, seed, x)) for (row, seed), x in there.items()]
    found = summary.points([*cells, (Place(VANILLA, "arc", 0), cell(VANILLA, 0, [0] * 30))])
    (gain,) = summary.against(found, "standard", "acc").values()
    table = np.array([np.subtract(right["dbp", s], right["standard", s]) for s in (0, 2)], float)
    assert gain == crossed_interval([ItemValues(table, np.ones(30))])
    gains = summary.against(found, VANILLA, "acc")
    assert gains[Place("standard", "arc", 25)].mean == pytest.approx(np.mean([right["standard", s] for s in (0, 1, 2)]))


def test_a_loss_is_nats_over_tokens_and_an_accuracy_stays_within_its_bounds():
    cells = [cell("standard", seed, [1, 1, 1, 0], [2.0, 4.0, 1.0, 1.0]) for seed in (0, 1)]
    assert summary.interval(cells, "loss").mean == pytest.approx(1.0)
    found = summary.interval(cells, "acc")
    assert found.mean == 0.75
    assert found.high == 1.0


def test_what_changes_elsewhere_is_against_the_untuned_model_and_leaves_its_own_benchmark_out():
    text = {"nll": [4.0, 6.0], "tokens": [2, 2]}
    tuned = cell(
        "standard", 0, [1, 1], elsewhere={"arc": cell("", 0, [0, 0, 1])}, text={"nll": [6.0, 8.0], "tokens": [2, 2]}
    )
    found = summary.points(
        [
            (Place(VANILLA, "mmlu", 0), cell(VANILLA, 0, [0, 0], text=text)),
            (Place(VANILLA, "arc", 0), cell(VANILLA, 0, [1, 1, 1], text=text)),
            (Place("standard", "mmlu", 25), tuned),
            (Place("dbp", "mmlu", 25), cell("dbp", 0, [1, 1])),
        ]
    )
    (change,) = summary.elsewhere(found, {"mmlu": "acc", "arc": "acc"}).values()
    assert set(change) == {"arc", "text"}
    assert change["arc"].mean == pytest.approx(-2 / 3)
    assert change["text"].mean == pytest.approx(1.0)
