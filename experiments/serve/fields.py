"""The fields of a request's JSON object, each read with its type; a mistake is a 400 that names the field."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from experiments.serve.errors import ApiError, invalid, shown


def checked_text(where: str, value: object) -> str:
    """The same text.

    Raises:
      ApiError: a 400; it is something else, or has half characters.
    """
    if not isinstance(value, str):
        raise invalid(where, f"a text is wanted, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(where, "the text has half characters (surrogates)") from None
    return value


class Fields:
    """Reads a JSON object field by field; null counts as absent.

    Raises:
      ApiError: in every method, a 400 that names the field.
    """

    def __init__(self, table: object, where: str = ""):
        if not isinstance(table, dict):
            name = where or "body"
            raise ApiError(400, f"{name}: a JSON object is wanted, not {shown(table)}", param=where or None)
        self.table = cast("Mapping[str, object]", table)
        self.where = where
        self._read: set[str] = set()

    def name(self, field: str) -> str:
        """How messages call a field."""
        return f"{self.where}.{field}" if self.where else field

    def get(self, field: str) -> object:
        """The value as it is, None without one."""
        self._read.add(field)
        return self.table.get(field)

    def text(self, field: str) -> str | None:
        """A text."""
        value = self.get(field)
        return None if value is None else checked_text(self.name(field), value)

    def needed(self, field: str) -> str:
        """A text that must be there."""
        value = self.text(field)
        if value is None:
            raise invalid(self.name(field), "is missing; a text is wanted")
        return value

    def choice(self, field: str, choices: Sequence[str]) -> str | None:
        """One of some words."""
        value = self.text(field)
        if value is not None and value not in choices:
            raise invalid(self.name(field), f"must be one of {', '.join(choices)}, not {shown(value)}")
        return value

    def flag(self, field: str) -> bool | None:
        """True or false."""
        value = self.get(field)
        if value is not None and not isinstance(value, bool):
            raise invalid(self.name(field), f"true or false is wanted, not {shown(value)}")
        return value

    def number(self, field: str, low: float, high: float) -> float | None:
        """A number in a range."""
        value = self.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(self.name(field), f"a number is wanted, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(self.name(field), f"must lie in {low:g}..{high:g}, got {shown(value)}")
        return value

    def whole(self, field: str, low: int, high: int) -> int | None:
        """A whole number in a range; 3.0 counts."""
        value = self.number(field, -math.inf, math.inf)
        if value is None:
            return None
        if not low <= value <= high or value != int(value):
            raise invalid(self.name(field), f"must be a whole number in {low}..{high}, got {shown(value)}")
        return int(value)

    def texts(self, field: str, most: int, longest: int) -> tuple[str, ...]:
        """A text or a list of texts, none of them empty."""
        value = self.get(field)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if len(found) > most:
            raise invalid(self.name(field), f"{len(found)} texts; at most {most} are taken")
        texts = tuple(checked_text(self.name(field), one) for one in found)
        if not all(texts):
            raise invalid(self.name(field), "a text is empty; leave it out")
        if any(len(text) > longest for text in texts):
            raise invalid(self.name(field), f"a text has more than {longest} characters")
        return texts

    def unsupported(self, field: str, *harmless: object) -> None:
        """Refuses a field that would change the answer, unless its value changes nothing."""
        value = self.get(field)
        if value is not None and value not in ([], {}, *harmless):
            raise invalid(self.name(field), "is not supported by this server; leave it out", "unsupported_parameter")

    def finish(self, known: Collection[str] = ()) -> None:
        """Refuses a field that is nearly one of those that were read: a slip of the pen; others are left alone.

        Args:
          known: names that are right too, though nothing here reads them.
        """
        right = self._read | set(known)
        for field in self.table:
            near = [] if field in right else difflib.get_close_matches(field[:100], sorted(right), 1, 0.85)
            if near:
                raise invalid(self.name(field[:100]), f"unknown field; did you mean {near[0]}?", "unknown_parameter")
