"""The reference has every public name, with what a reader needs, and every setting of every command."""

import inspect
import re

import pytest

from experiments.cli import COMMANDS
from scripts.docs import reference

FACES = [one for face in reference.FACES for one in reference.names(face)]


def test_every_public_name_stands_on_one_page():
    pages = reference.documented()
    homes = [one.home for own in pages.values() for one in own]
    assert len(homes) == len(set(homes))
    assert {one.home for one in FACES} <= set(homes)
    shown = reference.module_page("state_tuning", pages["state_tuning"])
    assert "::: state_tuning.tune\n" in shown
    assert {"rwkv7_jax.checkpoint", "state_tuning.dbp", "pallas_kernels"} <= set(pages)


@pytest.mark.parametrize("public", [one for one in FACES if inspect.isfunction(one.value)], ids=lambda one: one.path)
def test_public_functions_say_what_they_take_and_give(public):
    text = inspect.getdoc(public.value) or ""
    parameters = [name for name in inspect.signature(public.value).parameters if name not in ("self", "cls")]
    assert not parameters or "Args:" in text or "Args, Returns" in text
    gives = inspect.signature(public.value).return_annotation not in (None, "None")
    assert "Returns" in text or "Yields:" in text or not gives
    assert "Example:" in text or "    lm" in text or reference.snippet_of(public)
    described = text.partition("Args:")[2].partition("Returns:")[0]
    assert "Args, Returns" in text or [name for name in parameters if not re.search(rf"\b{name}\b", described)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_of_a_command_has_all_of_its_help(command):
    text = reference.help_of(command)
    page = reference.command_page(command, text)
    settings = re.findall(r"^  (--[\w.-]+|[A-Z][A-Z_]+) ", text, re.MULTILINE)
    rows = re.findall(r"^\| `(--[\w.-]+|[A-Z][A-Z_]+)` \|", page, re.MULTILINE)
    assert rows == settings
    words = [word for word in re.findall(r"[A-Za-z]{4,}", text) if word.lower() not in page.lower()]
    assert words == []
