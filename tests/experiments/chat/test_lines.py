"""Turns of one line and of several, from a pipe."""

import io

import pytest

from experiments.chat.lines import UnreadableLine, from_pipe, turn


def read(text: bytes) -> tuple[list[str], list[str]]:
    """(all turns, what was shown)."""
    shown, found = [], []
    ask = from_pipe(io.BytesIO(text), shown.append)
    while True:
        try:
            found.append(turn(ask))
        except EOFError:
            return found, shown


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("one\n\n/two x\r\n", ["one", "", "/two x"]),
        ("one \\\ntwo\\\nthree\nfour", ["one \ntwo\nthree", "four"]),
        ('"""one\n\n  two\n"""\nthree\n', ["one\n\n  two", "three"]),
        ('"""one"""\n""" two\nthree"""\n', ["one", " two\nthree"]),
        ('say """x"""\n', ['say """x"""']),
        ("\ufeffUser: é 你好\n", ["User: é 你好"]),
        ("", []),
    ],
)
def test_lines_become_turns(text, turns):
    assert read(text.encode())[0] == turns


def test_lines_are_shown_behind_their_prompt():
    assert read(b'one\\\ntwo\n"""three\n"""\n')[1] == ["> one\\", ". two", '> """three', '. """']


@pytest.mark.parametrize("text", [b'"""one\ntwo\n', b"one\\\n"])
def test_an_open_turn_ends_with_the_input(text):
    assert read(text)[0] == []


def test_a_line_that_is_not_text_is_told_and_the_next_is_read():
    ask = from_pipe(io.BytesIO(b"a\xff\nb\n"), lambda _: None)
    with pytest.raises(UnreadableLine, match="not valid UTF-8"):
        turn(ask)
    assert turn(ask) == "b"
    with pytest.raises(UnreadableLine, match="not valid UTF-8"):
        turn(lambda _: "a\udcff")
    assert turn(lambda _: "a\udcc3\udca9") == "aé"
