"""Wrong settings of the study of test-time scaling: one line, and nothing written."""

import pytest

from experiments.study.test_time.__main__ import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperatures", "0"], "temperatures: must be given, all above 0"),
        (["--temperatures", "0.3,nan"], "temperatures"),
        (["--temperature", "0.3"], "unknown key 'temperature'; did you mean temperatures?"),
    ],
)
def test_wrong_settings_are_one_line(words, said, tmp_path, capsys):
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
