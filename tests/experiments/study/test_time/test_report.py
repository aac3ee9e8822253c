"""The report of the study of test-time scaling: methods at equal numbers of chains, from hand-made chains."""

import numpy as np
import pytest

from experiments.study.test_time import plots, report
from experiments.study.test_time.cells import Cell, Outcome
from experiments.study.test_time.settings import Settings

WRONG, RIGHT = 0.0, 1.0
ONE = Outcome([WRONG, RIGHT, WRONG], ["a", "b", "a"], [-2.0, -0.5, -1.5], [(5, 10)] * 3)


def test_a_vote_turns_with_its_weight_and_the_number_of_chains():
    assert report.vote(ONE, 3, None) == report.vote(ONE, 3, 0.5) == report.vote(ONE, 1, 4.0) == WRONG
    assert report.vote(ONE, 3, 4.0) == report.best_of(ONE, 3) == RIGHT
    assert report.best_of(ONE._replace(scores=[None] * 3), 3) == WRONG


class Known:
    """A study whose chains are written down: adaptation makes every chain right at rate 0.3.

    At temperature 0.5 all chains are alike and wrong, but at 0.7 the majority is right and the best is wrong.
    """

    config = Settings(
        signals=("reverse", "token"), rates=(0.1, 0.3), samples=1, steps=2, seeds=(0, 1), test=4,
        temperatures=(0.5, 0.7, 1.0),
    )  # fmt: skip

    def plain(self, cell, split, count, temperature):
        chains = {0.5: ONE._replace(right=[WRONG] * 3), 0.7: ONE._replace(right=[RIGHT, WRONG, RIGHT]), 1.0: ONE}
        return [chains[temperature]] * 4, [RIGHT, RIGHT, WRONG, WRONG]

    def searched(self, cell, split, count, temperature):
        assert temperature == 1.0
        return [ONE] * 4

    def adapted(self, cell, split, count, signal, rate):
        good = Outcome([RIGHT] * 3, ["b"] * 3, [-1.0] * 3, [(6, 12)] * 3)
        steps = [good if rate == 0.3 else ONE] * 3
        return [[Outcome(*(column[: step + 1] for column in one)) for step, one in enumerate(steps)]] * 4


@pytest.fixture(scope="module")
def found():
    study = Known()
    chosen = report.choose(study, Cell("mmlu", "took", 0))
    return chosen, *report.lines(study, "mmlu", "took", chosen)


def test_validation_chooses_rates_and_weights(found):
    chosen, _, _ = found
    assert chosen.rates == {"reverse": 0.3, "token": 0.3}
    assert chosen.temperatures == {"self_consistency": 0.7, "best_of_n": 1.0, "weighted_vote": 0.7}
    assert chosen.plain_weight == 0.5, "the first weight with which the vote is right"
    assert len(chosen.table) == 1 + 3 * 3 + 2 * 2


def test_every_method_stands_at_its_number_of_chains_with_its_tokens(found):
    _, lines, costs = found
    assert {n for method, n in lines if method == "reverse_vote"} == {2, 3}
    assert all(np.asarray(rows).shape == (2, 4) for rows in lines.values())
    assert costs["self_consistency", 3] == [15.0, 0.0]
    assert costs["best_of_n", 2] == [10.0, 20.0]
    assert costs["reverse", 3] == [18.0, 24.0], "its own last answer is not scored"
    assert costs["reverse_vote", 3] == [18.0, 36.0]


def test_differences_are_paired_and_the_items_are_kept(found):
    chosen, lines, costs = found
    body = report.report("mmlu", chosen, lines, costs)
    assert body["points"]["self_consistency@3"][0] == 1.0
    assert body["points"]["weighted_vote@3"][0] == 1.0
    assert body["points"]["best_of_n@2"][0] == 1.0
    assert body["differences"]["reverse_vote@3 - self_consistency@3"] == [0.0, 0.0, 0.0]
    assert body["differences"]["reverse_vote@3 - larger@1"][0] == 0.5
    assert body["differences"]["search_best@2 - best_of_n@2"][0] == 0.0
    assert body["items"]["larger@1"] == ["1100", "1100"]
    text = report.tables("mmlu", body)
    assert "| reverse_vote | 3 | 100.0 |" in text
    assert "reverse_vote@3 - larger@1" in text


def test_the_picture_has_a_panel_for_each_benchmark(found, tmp_path):
    body = report.report("mmlu", *found)
    plots.accuracy(tmp_path / "one.png", {"mmlu": body})
    plots.accuracy(tmp_path / "two.png", {"mmlu": body, "arc": body})
    sizes = [
        tuple(int.from_bytes((tmp_path / name).read_bytes()[at : at + 4]) for at in (16, 20))
        for name in ("one.png", "two.png")
    ]
    assert sizes[1][0] > sizes[0][0] > 0
    assert sizes[1][1] == sizes[0][1]
