"""The learning-rate sweep: one row a cell, read back on the second run, and a table that shows the means."""

from pathlib import Path

import pytest

from experiments import sweep


def test_sweep_writes_each_cell_once(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "my.jsonl"
    data.write_text("".join(f'{{"prompt": "say {i}:", "completion": " {i}{i}"}}\n' for i in range(12)))
    args = ["--config", "jsonl", "--model.checkpoint", str(tiny_checkpoint), "--data.train", str(data)]
    args += ["--output_dir", str(tmp_path / "out"), "--tune.steps", "2", "--tune.warmup", "0", "--model.wkv", "scan"]
    args += ["--rates", "0.01,0.1", "--seeds", "0", "--system.compilation_cache", "false"]
    assert sweep.main(args) == 0
    first = capsys.readouterr().out
    assert sweep.main(args) == 0
    assert capsys.readouterr().out == first
    (log,) = (tmp_path / "out").glob("*.jsonl")
    assert len(log.read_text().splitlines()) == 2
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    assert "rate 0.01 | rate 0.1" in (tmp_path / "out" / "sweep.md").read_text()


def test_table_shows_the_mean_over_seeds():
    rows = [
        {"task": "a", "rate": rate, "seed": seed, "loss_vanilla": 3.0, "loss_tuned": rate + seed}
        for rate in (0.5, 1.0)
        for seed in (0, 1)
    ]
    assert "| a | 3.000 | 1.000 | 1.500 |" in sweep.table(rows)
    assert "| mean fall | | 2.000 | 1.500 |" in sweep.table(rows)


@pytest.mark.parametrize("words", [["--rates"], ["--rates", "fast"], ["--seeds", "1,x"]])
def test_lists_that_are_none_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert sweep.main(["--config", "quickstart", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]} needs numbers")
