r"""Escapes in typed texts: `\n` in `--stop` and `--prompt`, not in files that have escapes of their own."""

import json

import pytest

from experiments.config.commands import Generate
from experiments.config.escapes import unescape
from experiments.config.loading import parse
from experiments.config.overrides import UsageError, apply_overrides
from experiments.config.schema import RunConfig


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"\n", "\n"), (r"\r\n\t", "\r\n\t"), (r"\\n", r"\n"), ("\\\\\\n", "\\\n"), (r"\x41\u00e9\U0001F600", "Aé😀"),
        (r"\ud83d\ude00", "😀"), (r"\alpha \d \x4 \u12", r"\alpha \d \x4 \u12"), ("a\nb", "a\nb"), ("\\", "\\"),
    ],
)  # fmt: skip
def test_escapes_stand_for_characters(typed, text):
    assert unescape(typed) == text


@pytest.mark.parametrize(("typed", "message"), [(r"\ud83d", "half of a surrogate"), (r"\UFFFFFFFF", "not a character")])
def test_what_is_not_a_character_is_one_line(typed, message):
    with pytest.raises(UsageError, match=f"stop: .*{message}"):
        apply_overrides(Generate(), ["--stop", typed])


def test_every_option_that_takes_a_text_understands_them():
    config = apply_overrides(Generate(), ["--stop", r"\n\n", r"--stop=\tUser:, and", r"prompt=a\nb"])
    assert (config.stop, config.prompt) == (("\n\n", "\tUser:, and"), "a\nb")
    assert apply_overrides(RunConfig(), ["--report.prompt", r"a\nb"]).report.prompt == "a\nb"
    assert apply_overrides(RunConfig(), ["--data.train", r"C:\new"]).data.train == r"C:\new"


def test_a_file_has_its_own_escapes(tmp_path):
    (tmp_path / "g.toml").write_text('prompt = "a\\nb"\nstop = ["\\n", \'\\n\']\n')
    (tmp_path / "g.json").write_text(json.dumps({"prompt": "a\nb", "stop": ["\n", r"\n"]}))
    for name in ("g.toml", "g.json"):
        config = parse(Generate(), ["--config", str(tmp_path / name)])
        assert (config.prompt, config.stop) == ("a\nb", ("\n", r"\n"))
