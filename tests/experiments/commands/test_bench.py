"""`rwkv7 bench`: mistakes in what is passed on to the benchmarks of kernels."""

import pytest

from experiments import cli


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("kernels --shape 4,512", "error: argument --shape: '4,512' is not a shape: write B,T,H,N"),
        ("kernels --shape 0,1,1,1", "every size must be at least 1"),
        ("kernels --repeats 0", "error: repeats: 0 must be at least 1"),
        ("gpu --shape a,b,c,d", "'a,b,c,d' is not a shape"),
        ("kernels --json nowhere/x.json", "error: json: no folder "),
        ("steps --rounds 0", "error: rounds: 0 must be at least 1"),
        ("model --json nowhere/x.json", "error: json: no folder "),
        ("evaluation --data.dir data --limit -1", "error: limit: -1 must be at least 1"),
        ("tokenizer nowhere.txt", "error: no file nowhere.txt"),
    ],
)
def test_mistakes_are_one_line(words, told, capsys):
    assert cli.main(["bench", *words.split()]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert told in error
    assert error.count("\n") == 1
