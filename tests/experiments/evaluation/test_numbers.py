"""Numbers read whole, compared by value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.evaluation.numbers import last_number

CASES = {
    "2.50": "2.5", "18.00": "18", "the chance is .5": "1/2", "-.5": "-1/2", "\u22123": "-3", "it is \u22123.0.": "-3",
    "\u20133 degrees": "-3", "+7": "7", "-0": "0", "007": "7",
    "1,234": "1234", "1,234,567.89.": "123456789/100", "12,34,567": "1234567", "1 234": "234", "1\u202f234": "1234",
    "1'234.5": "2469/2", "1_000": "1000", "1.234,56": "30864/25", "1.234.567": "1234567", "3,5": "7/2", "0,125": "1/8",
    "1, 2, 3": "3", "1,2,3": "3", "2.": "2", "5, and": "5",
    "$5": "5", "-$5": "-5", "$-5": "-5", "$1,200.50": "2401/2", "\u20ac 5": "5", "5\u20ac": "5",
    "\\$5": "5", "$-5$": "-5",
    "1e3": "1000", "1.5E-2": "3/200", "2e+2": "200", "1.5 \u00d7 10^3": "1500", "3\u00d710\u207b\u00b2": "3/100",
    "2 \\times 10^{3}": "2000", "1e\u22122": "1/100", "10^6": "1000000", "2^10": "1024",
    "1/2": "1/2", "it is 3/4 cup": "3/4", "2 1/2": "5/2", "7/2": "7/2", "\\frac{1}{3}": "1/3", "-\\frac{1}{3}": "-1/3",
    "\\frac12": "1/2", "-\\dfrac34": "-3/4", "\\frac 1 3": "1/3", "\\cfrac{10} {4}": "5/2", "7/0 or 3, 1/0": "3",
    "\u00bd": "1/2", "1\u00bd": "3/2", "2 \u00bc": "9/4",
    "50%": "50", "12.5 %": "25/2", "50 percent": "50", "\\boxed{42}": "42", "**42**": "42", "x=-5": "-5", "(-5)": "-5",
    "10-3": "3", "10 - 3": "3", "GPT-4": "4", "3\u20135": "5", "5 m^2": "5", "5 m\u00b2": "5", "at 12/25/2024": "2024",
    "the end.5": "5", "1.2.3": "3", "3:30": "30", "\uff11\uff12": "12", "\u0663": "3", "5kg": "5", "#### 18\n": "18",
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_a_number_is_read_whole(text):
    found = last_number(text)
    assert found is not None
    assert found.value == Fraction(CASES[text])


@pytest.mark.parametrize("text", ["", "none", ".", "m^2", "1e999999999", "5/0", "9" * 500, "-", "$", "inf", "nan"])
def test_a_text_without_a_number_that_can_be_read_has_none(text):
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("2.5", "2.50", True), ("5", ".5", False), ("50%", "50", True), ("50%", "0.5", True), ("0.5", "50 %", True),
     ("50", "0.5", False), ("50%", "0.5%", False), ("1/3", "2/6", True), ("0.333", "1/3", False),
     ("3", "\u22123", False)],
)  # fmt: skip
def test_values_are_compared(one, other, same):
    first, second = last_number(one), last_number(other)
    assert first is not None
    assert second is not None
    assert first.same(second) == second.same(first) == same


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
def test_what_is_written_is_read_back(value):
    for text in (f"{value}", f"{value:,}", f"It is {value:e}.", f"${value:,}", f"{value}".replace("-", "\u2212")):
        found = last_number(text)
        assert found is not None
        assert found.value == Fraction(value)


@given(st.text("0123456789.,-+eE/^ $%x*{}()\u2212\u00bd", max_size=30))
def test_no_text_is_an_error(text):
    last_number(text)
