"""The equations of a worked solution, and whether they are the right ones."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

NOTE = re.compile(r"<<([^<>]*)>>")
"""What the calculator of GSM8K notes: `<<48/2=24>>`."""
TERM = r"\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
EQUATION = re.compile(rf"(?<![\w.])({TERM}(?:\s*[-+*/x×÷]\s*{TERM})+)\s*=\s*\$?(-?\d[\d,]*(?:\.\d+)?)(?![\w%])")
SIGNS = {"x": "*", "×": "*", "÷": "/"}
LONGEST = 12
"""Digits of a number at most."""


class Equation(NamedTuple):
    """One equation: what stands left without spaces, and the number on its right."""

    left: str
    right: Fraction

    @property
    def holds(self) -> bool:
        """Whether the left side has the value of the right."""
        value = evaluate(self.left)
        return value is not None and value == self.right


def equations(text: str) -> list[Equation]:
    """Returns the equations `a + b = c` of a text in order; notes of the calculator count where there are some.

    Example:
      >>> [(one.left, int(one.right), one.holds) for one in equations("3 + 4 = 7, then 7 * 2 = 15.")]
      [('3+4', 7, True), ('7*2', 15, False)]
    """
    notes = NOTE.findall(text)
    found = [match for note in notes for match in EQUATION.findall(note)] if notes else EQUATION.findall(text)
    return [
        Equation(_plain(left), Fraction(_plain(right)))
        for left, right in found
        if max(map(len, re.findall(r"\d+", left + " " + right.replace(",", "")))) <= LONGEST
    ]


def solves(text: str, gold: str) -> bool:
    """Returns whether the equations that a text begins with are those of the gold solution, one by one.

    What a text says after them does not count, so a chain may be solved and still end in another number.

    Raises:
      ValueError: the gold solution has no equation.
    """
    wanted, found = equations(gold), equations(text)
    if not wanted:
        raise ValueError(f"the solution has no equation: {gold[:80]!r}")
    return found[: len(wanted)] == wanted


def all_hold(found: Sequence[Equation]) -> bool:
    """Returns whether there are equations and every one of them holds."""
    return bool(found) and all(one.holds for one in found)


def evaluate(left: str) -> Fraction | None:
    """Returns the value of numbers joined by + - * /, products before sums; None if something is divided by zero.

    Example:
      >>> evaluate("2+3*4"), evaluate("1/0")
      (Fraction(14, 1), None)
    """
    terms: list[Fraction] = []
    sign = "+"
    for part in re.findall(r"[-+*/]|[^-+*/]+", left):
        if part in SIGNS.values() or part in "+-":
            sign = part
            continue
        number = Fraction(part.removesuffix("%")) / (100 if part.endswith("%") else 1)
        if sign in "+-":
            terms.append(number if sign == "+" else -number)
        elif sign == "*":
            terms[-1] *= number
        elif number:
            terms[-1] /= number
        else:
            return None
    return sum(terms, Fraction(0))


def _plain(text: str) -> str:
    """An equation's side without spaces, currencies and separators of thousands, signs as + - * /."""
    for sign, plain in SIGNS.items():
        text = text.replace(sign, plain)
    return re.sub(r"[\s$,]", "", text)
