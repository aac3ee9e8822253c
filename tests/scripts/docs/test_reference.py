"""The reference has every public name, with what a reader needs, and every setting of every command."""

import functools
import re
from typing import NamedTuple

import pytest

from experiments.cli import COMMANDS
from scripts.docs import reference

FACES = [one for face in reference.FACES for one in reference.names(face)]
PUBLIC = [one for own in reference.documented().values() for one in own]


def test_every_public_name_stands_on_one_page():
    pages = reference.documented()
    homes = [one.home for own in pages.values() for one in own]
    assert len(homes) == len(set(homes))
    assert {one.home for one in FACES} <= set(homes)
    shown = reference.module_page("state_tuning", pages["state_tuning"])
    assert "::: state_tuning.tune\n" in shown
    assert {"rwkv7_jax.checkpoint", "state_tuning.dbp", "pallas_kernels"} <= set(pages)


def test_a_program_stands_once_on_a_page():
    page = reference.module_page("rwkv7_jax.checkpoint", reference.documented()["rwkv7_jax.checkpoint"])
    programs = re.findall(r"```python\n.*?```", page, re.DOTALL)
    assert len(programs) == len(set(programs)) == 2
    assert "**Example**: the program under [`" in page


def test_a_module_names_the_modules_below_it():
    page = reference.module_page("rwkv7_jax.inference", [])
    assert "- [`rwkv7_jax.inference.scoring`](rwkv7_jax.inference.scoring.md): Log-likelihoods by" in page
    assert "## Modules" not in reference.module_page("rwkv7_jax.inference.scoring", [])


def test_pages_tell_everything():
    assert len(PUBLIC) > 250
    assert {one.path: missing for one in PUBLIC if (missing := reference.lacking(one))} == {}


def test_programs_belong_to_public_names():
    """A misspelt name in the first line of a program would have it shown nowhere."""
    known = {name for module in reference.modules() for one in reference.names(module) for name in (one.path, one.home)}
    heads = (file.read_text(encoding="utf-8").partition("-->")[0] for file in reference.SNIPPETS.glob("*.md"))
    named = [name for name in " ".join(heads).split() if name.startswith(reference.FACES)]
    assert len(named) > 100
    assert [name for name in named if name not in known] == []


def told(x: int, *, y: int = 0) -> int:
    """Adds.

    Args:
      x, y: numbers.

    Returns:
      The sum.

    Example:
      >>> told(1)
      1
    """
    return x + y


def untold(x: int, y: int) -> int:
    """Adds.

    Args:
      x: a number
        y: is not described by this.

    Example:
      >>> untold(1, 2)  # doctest: +SKIP
    """
    return x + y


def silent() -> None:
    """Does nothing.

    Example:
      >>> silent()
    """


class Told(NamedTuple):
    """Two numbers.

    Attributes:
      x: the first.

    Example:
      >>> Told(1, 2).y
      2
    """

    x: int
    y: int
    """The second."""


class Untold(NamedTuple):
    """Two numbers."""

    x: int
    y: int
    """The second."""


class Made:
    """What has a constructor.

    Args:
      x: a number.
    """

    def __init__(self, x: int, *, name: str = ""):
        self.x, self.name = x, name


class MadeAlike(Made):
    """What has the constructor of another.

    Args:
      x: a number.
      name: a text.

    Example:
      >>> MadeAlike(1).x
      1
    """


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        (told, []),
        (untold, ["y", "Returns", "Example"]),
        (silent, []),
        (functools.cache(untold), ["y", "Returns", "Example"]),
        (Told, []),
        (Untold, ["x", "Example"]),
        (Made, ["name", "Example"]),
        (MadeAlike, []),
        ({"x": 1}, []),
    ],
)
def test_what_a_page_does_not_tell_is_named(value, missing, monkeypatch):
    monkeypatch.setattr(reference, "FACES", (__name__.partition(".")[0],))
    assert reference.lacking(reference.Public(__name__, "one", value)) == missing


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A box.", "A box.\n\nAttributes:\n  x: its width.\n  y: its height."),
        (
            "A box.\n\nRaises:\n  E: no.\n\nExample:\n  >>> 1\n  1",
            "A box.\n\nAttributes:\n  x: its width.\n  y: its height.\n\nRaises:\n  E: no.\n\nExample:\n  >>> 1\n  1",
        ),
        ("A box.\n\nAttributes:\n  z: depth.", "A box.\n\nAttributes:\n  x: its width.\n  y: its height.\n  z: depth."),
    ],
)
def test_fields_stand_in_the_docstring_of_their_class(text, whole):
    assert reference.with_fields(text, {"x": "its width.", "y": "its\nheight."}) == whole
    assert reference.with_fields(text, {}) == text


def test_pages_show_methods_and_calls_beside_the_fields():
    pages = reference.documented()
    assert "rwkv7_jax.State\n    options:\n      heading_level: 2\n      members: false" in reference.module_page(
        "rwkv7_jax", pages["rwkv7_jax"]
    )
    page = reference.module_page("rwkv7_jax.wkv_state", pages["rwkv7_jax.wkv_state"])
    assert "members: ['__call__']" in page
    assert "members: ['attend', 'lifted', 'queries']" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_of_a_command_has_all_of_its_help(command):
    text = reference.help_of(command)
    page = reference.command_page(command, text)
    settings = re.findall(r"^  (--[\w.-]+|[A-Z][A-Z_]+) ", text, re.MULTILINE)
    rows = re.findall(r"^\| `(--[\w.-]+|[A-Z][A-Z_]+)` \|", page, re.MULTILINE)
    assert rows == settings
    words = [word for word in re.findall(r"[A-Za-z]{4,}", text) if word.lower() not in page.lower()]
    assert words == []
