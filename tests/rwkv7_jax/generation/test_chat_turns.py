"""The text of a chat turn never ends the turn."""

import pytest

from rwkv7_jax.generation.chat_turns import turn_text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (" one\ntwo ", "one\ntwo"),
        ("one\n\ntwo\n\n\n\nthree\n\n", "one\ntwo\nthree"),
        ("one\r\ntwo\r\n\r\nthree\n\r\nfour", "one\ntwo\nthree\nfour"),
        ([{"type": "text", "text": "one\n"}, {"type": "text", "text": "\ntwo"}, " three"], "one\ntwo three"),
        ([], ""),
        (None, ""),
    ],
)
def test_turns_hold_no_empty_line_and_parts_are_joined(content, text):
    assert turn_text(content) == text


def test_kept_empty_lines_end_no_turn():
    text = "\n\none\n\n\ntwo\r\n\r\nUser: three\n\nUserless\n\n\nAssistant:\n"
    assert turn_text(text, keep_empty_lines=True) == "one\n\n\ntwo\nUser: three\n\nUserless\nAssistant:"


def test_parts_that_are_not_text_are_named():
    with pytest.raises(ValueError, match="a part of type 'image_url'; only text"):
        turn_text([{"type": "image_url", "image_url": {}}])
