"""Rewards that a program checks: what counts, odd texts, and a user's function that misbehaves."""

import re
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_tuning.reinforcement.rewards import Answer, RewardError, last_letter, last_number, make_reward

ODD = st.text() | st.text(alphabet="0123456789.,-$#%eE+ \n\u2212") | st.text(alphabet="ABIJ()'. \u2019")


def score(reward, completion, gold="", prompt="q", record=None):
    return make_reward(reward).score(Answer(prompt, completion, gold, record or {}))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so it is 4.", "4"), ("1,250.50 dollars", "1250.50"), ("$-3", "-3"), ("-$3", "-3"), ("5-3", "3"),
        ("5 - 3 = 2\n#### 2", "2"), ("it is -7", "-7"), ("\u22127", "-7"), (".5", "0.5"), ("1,2,3", "3"),
        ("1,23", "23"), ("007", "7"), ("x" * 9 + "9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_the_last_number(text, value):
    assert last_number(text) == Decimal(value)


def test_numbers_compare_by_value():
    assert score("number", "about $1,000.0", "#### 1000") == 1.0
    assert score("number", "1000 or 1001", "1000") == 0.0
    assert score("number", "no idea", "1000") == 0.0
    assert score("number", "", "") == 0.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" It is 7, so Tom took B", "B"), ("A or (C).", "C"), ("Bob", None), ("b", None), ("it's A's", None),
        ("B, I think so", "B"), ("the answer is I.", "I"), ("Zed K", None), ("ABC", None), ("**D**", "D"),
    ],
)  # fmt: skip
def test_the_last_letter(text, letter):
    assert last_letter(text) == letter


def test_letters_compare_the_last_ones():
    assert score("letter", " It is red, so Tom took B", " It is red, so Ann took B") == 1.0
    assert score("letter", " B", " C") == 0.0
    assert score("letter", "", "") == 0.0


def test_a_pattern_with_the_right_answer_in_it():
    assert score("regex:^ ?yes$", " yes") == 1.0
    assert score("regex:^ ?yes$", " yes, no") == 0.0
    assert score("regex:#### {answer}$", "2+2\n#### 4.5", "4.5") == 1.0
    assert score("regex:#### {answer}$", "#### 4x5", "4.5") == 0.0
    assert score("regex:^a{2}$", "aa") == 1.0


@given(ODD, ODD)
def test_odd_texts_are_judged_and_not_run(said, gold):
    for name in ("number", "letter", "regex:{answer}", r"regex:(?i)\bno\b"):
        reward = make_reward(name)
        assert reward.score(Answer(said, said, gold)) in (0.0, 1.0)
        assert reward.unusable(gold) is None or isinstance(reward.unusable(gold), str)


@given(st.integers(-(10**12), 10**12), st.text(alphabet="abc .!\n"))
def test_a_number_is_found_however_it_is_written(number, around):
    for written in (f"{number}", f"{number:,}", f"{number}.0"):
        assert score("number", f"{around} {written}", str(number)) == 1.0
        assert score("number", f"{around} {written}", str(number + 1)) == 0.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("numbre", "no reward 'numbre': give number, letter, regex:PATTERN"),
        ("regex:(", "is not a regular expression"),
        ("regex:", "has no pattern"),
        ("", "no reward ''"),
        ("no_such_module_here:score", "cannot import no_such_module_here"),
        ("math:no_such", "math has no function no_such"),
        ("math:pi", "math has no function pi"),
        ("nowhere.py:score", "no file nowhere.py"),
        ("os; import x:y", "no reward"),
        ("a b:c", "no reward"),
        ("x" * 500, "(cut)"),
    ],
)
def test_a_reward_that_cannot_be_had_is_one_line(name, said):
    with pytest.raises(RewardError, match=re.escape(said)) as raised:
        make_reward(name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working directory; all functions but the named ones would be noticed."""
    (tmp_path / "my_rewards.py").write_text(
        "calls = []\n"
        "def length(prompt, completion, record):\n    calls.append((prompt, completion, record))\n"
        "    return len(completion) / record.get('most', 10)\n"
        "def other(*_):\n    raise AssertionError('not asked for')\n"
        "def raises(*_):\n    raise ZeroDivisionError('by\\nzero')\n"
        "def leaves(*_):\n    raise SystemExit(3)\n"
        "def nan(*_):\n    return float('nan')\n"
        "def infinite(*_):\n    return float('-inf')\n"
        "def huge(*_):\n    return 10 ** 400\n"
        "def nothing(*_):\n    return None\n"
        "def text(*_):\n    return '1'\n"
        "def yes(*_):\n    return True\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    sys.modules.pop("my_rewards", None)


def test_a_function_of_the_users(mine):
    assert score("my_rewards:length", "abc", record={"most": 6}) == 0.5
    assert sys.modules["my_rewards"].calls == [("q", "abc", {"most": 6})]
    assert score("my_rewards:yes", "") == 1.0
    assert score(f"{mine}/my_rewards.py:length", "abcde") == 0.5
    first = make_reward("my_rewards.py:yes").source
    (mine / "my_rewards.py").write_text("def yes(*_):\n    return 0\n")
    assert len(first) == 64
    assert make_reward("my_rewards.py:yes").source != first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "raised ZeroDivisionError: 'by zero' for the answer 'abc'"),
        ("leaves", "raised SystemExit: '3' for the answer 'abc'"),
        ("nan", "returned nan, not a number up to 1e+06, for the answer 'abc'"),
        ("infinite", "returned -inf"),
        ("huge", "returned inf"),
        ("nothing", "returned NoneType, not a number"),
        ("text", "returned str, not a number"),
    ],
)
def test_a_function_that_misbehaves_is_one_line(mine, name, said):
    with pytest.raises(RewardError, match=re.escape(said)) as raised:
        score(f"my_rewards:{name}", "abc")
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_is_one_line(mine):
    (mine / "broken_rewards.py").write_text("raise RuntimeError('no\\nGPU')\n")
    for name in ("broken_rewards:f", "broken_rewards.py:f"):
        with pytest.raises(RewardError, match=r"cannot import broken_rewards.*RuntimeError: 'no GPU'"):
            make_reward(name)
