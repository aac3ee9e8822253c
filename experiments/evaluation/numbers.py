"""Numbers in texts, read whole and compared by value: `2.50` is `2.5`, `.5` is not `5`, and `1,234` not `234`."""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

MINUS = "-\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}\N{EN DASH}"
SIGN = rf"[{MINUS}+]"
CURRENCY = "$€£¥₹₩₽₺¢"
GAPS = "'\N{RIGHT SINGLE QUOTATION MARK}_\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}"
"""What separates thousands, beside comma and full stop."""
VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
LONGEST = 400
"""Digits of a number at most, before and after its point."""

NUMBER = re.compile(
    rf"""
    (?<![\^\d]) (?<!\^[{MINUS}+{{(])                              # what follows ^ is a power
    (?: (?<![\w)\]}}%]) (?P<sign>{SIGN}) (?=[\d.{VULGAR}\\{CURRENCY}]) )?
    (?: \\?[{CURRENCY}] [ ]? (?P<inner>{SIGN})? (?=[\d.\\{VULGAR}]) )?
    (?: \\[dtc]?frac \s* (?: \{{ \s* (?P<above>\d+) \s* \}} \s* \{{ \s* (?P<below>\d+) \s* \}}
                        | (?P<over>\d) \s? (?P<under>\d) )
      | (?<![/\w.]) (?: (?P<whole>\d+)[ ] )? (?P<top>\d+) [ ]?/[ ]? (?P<bottom>\d+) (?![\d/]|\.\d)
      | (?P<vulgar>[{VULGAR}])
      | (?P<body> (?<![\w.])\.\d+ | \d(?:[\d.,{GAPS}]*\d)? )
        (?: [ ]?(?P<part>[{VULGAR}])
          | [eE] (?P<e>{SIGN}?\d+) (?!\w)
          | \s* (?: [×x*·] | \\times | \\cdot ) \s* 10
            (?: \s*\^\s* [{{(]? (?P<ten>{SIGN}?\d+) | (?P<raised>[⁻⁺]?[⁰¹²³⁴-⁹]+) )
          | \^ [{{(]? (?P<power>\d+) )? )
    [}})]? (?P<percent> [ ]?\\?[%％] | [ ]per[ ]?cent\b )?
    """,
    re.VERBOSE,
)  # fmt: skip


class Number(NamedTuple):
    """A number in a text; equal values have equal fractions."""

    value: Fraction
    percent: bool = False

    def same(self, other: "Number | None") -> bool:
        """Returns whether both have one value; a percentage is the number before its sign, or a hundredth of it."""
        if other is None:
            return False
        if self.value == other.value or self.percent == other.percent:
            return self.value == other.value
        share, plain = (self.value, other.value) if self.percent else (other.value, self.value)
        return share / 100 == plain


def last_number(text: str) -> Number | None:
    r"""Returns the last number in a text, None if there is none.

    Signs (also U+2212), separators of thousands, decimal commas, a leading point, exponents, fractions, currencies and
    percent signs are understood; the power of a unit (`m^2`) is not a number.

    Example:
      >>> last_number("so 1,234.50 of them, or \u2212.5").value
      Fraction(-1, 2)
    """
    found = (_number(match) for match in reversed(list(NUMBER.finditer(text))))
    return next((number for number in found if number is not None), None)


def _number(match: re.Match[str]) -> Number | None:
    """The number that was matched, None if it is out of bounds or divides by zero."""
    part = {name: text for name, text in match.groupdict().items() if text is not None}
    if any(len(text) > LONGEST for text in part.values()):
        return None
    one = True
    if "over" in part:
        value = _mixed(None, part["over"], part["under"])
    elif "above" in part or "top" in part:
        value = _mixed(part.get("whole"), part.get("above") or part["top"], part.get("below") or part["bottom"])
    elif "vulgar" in part:
        value = _vulgar(part["vulgar"])
    else:
        value, one = _digits(part["body"])
        value = _with_tail(value, part)
    if value is None:
        return None
    sign = part.get("sign") or part.get("inner") or "+"
    return Number(-value if one and sign in MINUS else value, "percent" in part)


def _digits(body: str) -> tuple[Fraction, bool]:
    """(value of digits with separators, whether they are one number): of several the last one counts."""
    for gap in f",{GAPS}":
        thousands, lakhs = rf"[1-9]\d{{0,2}}(?:{gap}\d{{3}})+", rf"[1-9]\d?(?:{gap}\d\d)+{gap}\d{{3}}"
        if re.fullmatch(rf"(?:{thousands}|{lakhs})(?:\.\d+)?", body):
            return Fraction(body.replace(gap, "")), True
    if re.fullmatch(rf"[1-9]\d{{0,2}}(?:[.{GAPS}]\d{{3}})+,\d+|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}", body):
        return Fraction(re.sub(rf"[.{GAPS}]", "", body).replace(",", ".")), True
    if re.fullmatch(r"\d*[.,]?\d+", body):
        return Fraction(body.replace(",", ".")), True
    return Fraction(re.split(r"\D", body)[-1]), False


def _with_tail(value: Fraction, part: dict[str, str]) -> Fraction | None:
    """The value with the part or power after its digits, None if that is out of bounds."""
    if "part" in part:
        return value + _vulgar(part["part"])
    base, exponent = (value, part["power"]) if "power" in part else (Fraction(10), _exponent(part))
    power = int(exponent) if len(exponent) <= 4 else LONGEST + 1
    digits = len(str(base.numerator)) + len(str(base.denominator)) - 2
    if abs(power) * max(1, digits) > LONGEST:
        return None
    return base**power if "power" in part else value * base**power


def _exponent(part: dict[str, str]) -> str:
    text = part.get("e") or part.get("ten") or part.get("raised", "0").translate(RAISED)
    return re.sub(rf"[{MINUS}]", "-", text)


def _mixed(whole: str | None, top: str, bottom: str) -> Fraction | None:
    """A fraction, after a whole number if it is a proper one."""
    if not int(bottom):
        return None
    share = Fraction(int(top), int(bottom))
    return share + int(whole) if whole and share < 1 else share


def _vulgar(char: str) -> Fraction:
    return Fraction(unicodedata.numeric(char)).limit_denominator(10)
