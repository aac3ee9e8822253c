"""Equations of worked solutions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.pocket import problems
from experiments.pocket.draw import Draw
from experiments.tasks.equations import all_hold, equations, evaluate, solves


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He has 3 + 4 = 7 nuts.", [("3+4", 7)]),
        ("48/2 = <<48/2=24>>24, then 48+24 = <<48+24=72>>72.", [("48/2", 24), ("48+24", 72)]),
        ("It costs $1,200 * 2 = $2,400.", [("1200*2", 2400)]),
        ("2 x 3 = 6 and 8 ÷ 2 = 4", [("2*3", 6), ("8/2", 4)]),
        ("<<.5*10=5>>", [(".5*10", 5)]),
        ("10 - 12 = -2", [("10-12", -2)]),
        ("50% * 10 = 5", [("50%*10", 5)]),
        ("x = 3, a1 + 2 = 3, 3 = 3, 3 + = 4, 2 + 2 = five", []),
        ("1 + 1 = 2x", []),
        (f"{'9' * 40} + 1 = 3", []),
        ("", []),
    ],
)
def test_equations_are_read_with_their_values(text, found):
    assert [(one.left, one.right) for one in equations(text)] == [(left, Fraction(right)) for left, right in found]


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), max_size=5), st.integers(0, 99))
def test_values_are_those_of_python(parts, first):
    left = str(first) + "".join(f"{sign}{number}" for sign, number in parts)
    assert evaluate(left) == eval(left)
    assert [one.holds for one in equations(f"{left} = {eval(left)}.")] == ([True] if parts else [])


def test_division_is_exact_and_by_zero_it_has_no_value():
    assert evaluate("1/3") == Fraction(1, 3)
    assert evaluate("2+6/3/2-1") == 2
    assert evaluate("2/0") is None
    assert not equations("2 / 0 = 0")[0].holds


def test_a_chain_is_solved_if_it_begins_with_the_gold_equations():
    gold = "3 + 4 = 7\n7 * 2 = 14\n#### 14"
    assert solves(" 3 + 4 = 7\n7 * 2 = 14\n#### 14", gold)
    assert solves("3+4=7. 7*2=14. 14 - 1 = 13. #### 13", gold)
    assert not solves("3 + 4 = 7\n#### 14", gold)
    assert not solves("7 * 2 = 14\n3 + 4 = 7", gold)
    assert not solves("3 + 4 = 8\n7 * 2 = 14", gold)
    with pytest.raises(ValueError, match="the solution has no equation"):
        solves("3 + 4 = 7", "It is 7.")


def test_all_equations_of_a_text_hold_or_not():
    assert all_hold(equations("1 + 1 = 2, 2 * 2 = 4"))
    assert not all_hold(equations("1 + 1 = 2, 2 * 2 = 5"))
    assert not all_hold([])


def test_every_problem_of_the_pocket_world_has_its_equations_read():
    draw = Draw("equations")
    for _ in range(100):
        problem = problems.make_problem(draw)
        found = equations("\n".join(step.text for step in problem.steps))
        assert [int(one.right) for one in found] == [step.result for step in problem.steps]
        assert all_hold(found)
