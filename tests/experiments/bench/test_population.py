"""The measurement of evolution strategies against plain sampling runs and says a ratio."""

from experiments.bench import population


def test_both_are_timed_in_turn(capsys):
    assert population.main(["--rows", "8", "--tokens", "2", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "8 rows, 2 tokens each, 2 rounds in turn" in out
    assert "ratio: median " in out


def test_a_wrong_model_is_one_line(capsys):
    assert population.main(["--checkpoint", "nowhere.pth"]) == 2
    assert "no file nowhere.pth" in capsys.readouterr().err
