"""Errors of users: one line that a terminal shows as it is."""

from experiments.config.overrides import UsageError


def test_a_message_is_one_printable_line_of_bounded_length():
    text = str(UsageError("file.jsonl:3: no 'a\x1b[31m\u202eb'\nor " + "x" * 9000 + "; correct it"))
    assert text.startswith(r"file.jsonl:3: no 'a\x1b[31m\u202eb' or xxx")
    assert text.endswith("xxx; correct it")
    assert len(text) < 1600


def test_a_short_message_stays_as_it_is():
    assert str(UsageError("no file ärger 猫.jsonl")) == "no file ärger 猫.jsonl"
