"""Two texts side by side fit the terminal and lose nothing."""

import random

import pytest

from experiments.chat.screen import GAP, beside, cells, shown, wrapped


def test_two_texts_stand_side_by_side():
    assert beside(("with a", "without"), ("one\ntwo", "three"), 63) == "\n".join(
        [
            f"with a{' ' * 24}{GAP}without",
            f"{'─' * 30}{GAP}{'─' * 30}",
            f"one{' ' * 27}{GAP}three",
            f"two{' ' * 27}{GAP}".rstrip(),
        ]
    )


def test_narrow_terminals_show_one_under_the_other():
    assert beside(("with a", "without"), ("one", "two"), 59) == "[with a]\none\n\n[without]\ntwo"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two three", ["one two ", "three"]),
        ("abcdefghijkl", ["abcdefgh", "ijkl"]),
        ("你好你好你好", ["你好你好", "你好"]),
        ("a\n\nb", ["a", "", "b"]),
        ("  indented", ["  ", "indented"]),
    ],
)
def test_lines_are_cut_at_blanks_and_between_wide_characters(text, lines):
    assert wrapped(text, 8) == lines


@pytest.mark.parametrize("seed", range(20))
def test_no_line_is_too_wide_and_no_letter_is_lost(seed):
    chance = random.Random(seed)
    text = "".join(chance.choices("ab  \n你。é\u0301\U0001f600\t", k=200))
    width = chance.randint(2, 40)
    lines = wrapped(text, width)
    assert max(map(cells, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_long_titles_are_cut():
    assert all(cells(line) <= 80 for line in beside(("with " + "x" * 99, "你" * 99), ("a", "b"), 80).splitlines())


def test_control_characters_are_not_obeyed():
    assert shown("a\x1b[2Jb\r\n\tc\u202e") == "a\ufffd[2Jb\ufffd\n\tc\ufffd"
