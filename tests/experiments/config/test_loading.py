"""Config files with what no file should hold."""

import pytest

from experiments.config.loading import load_config
from experiments.config.overrides import UsageError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'base = "js' + "x" * 50_000 + '"'),
        ("c.toml", 'base = "' + "\u202e" * 300 + '"'),
        ("c.toml", 'base = "~no_such_user_here/c.toml"'),
        ("c.toml", "a = " + "[" * 20_000),
        ("c.toml", "tune.st" + "_" * 20_000 + " = 1"),
        ("c.json", "[" * 100_000),
        ("c.json", '{"a":' * 20_000),
        ("c.json", '{"method": {"kind": "' + "\x9b" * 300 + '"}}'),
        ("c.json", '{"base": "\\u0000"}'),
    ],
)
def test_a_config_file_that_cannot_be_one_is_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        load_config(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1600
