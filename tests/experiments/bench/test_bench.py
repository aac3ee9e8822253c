"""The benchmark of the whole model: a wrong result gets no time, and every job runs on the tiny shape."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.bench import inputs, ours, steps, tokenizer
from experiments.bench import model as bench


def test_table_names_what_was_not_measured():
    rows = [
        {"task": "decode", "who": "ours", "tokens_per_s": 50.0, "ratio": 1.0, "peak": 2**30},
        {"task": "decode", "who": "rwkv", "tokens_per_s": 25.0, "ratio": 2.0, "peak": 2**29},
        {"task": "prefill", "who": "rwkv", "problem": "No module named 'torch'"},
    ]
    text = bench.table(rows)
    assert "| decode | ours | 50 |  | 1.00 GiB |" in text
    assert "| decode | rwkv | 25 | 2.00x | 0.50 GiB |" in text
    assert "not measured: No module named 'torch'" in text


def test_a_wrong_result_is_named():
    prefill = [job for job in bench.JOBS if job.task == "prefill"]
    results: list[list[float]] = [[1.0, 2.0], [1.0, 2.1]]
    workers: dict[Any, Any] = {
        job: SimpleNamespace(result=result) for job, result in zip(prefill, results, strict=True)
    }
    assert list(bench.disagreement(workers)) == [bench.Job("ours", "prefill", inputs.PREFILL)]
    workers[prefill[0]].result = [1.0, 2.1]
    assert not bench.disagreement(workers)


@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_our_jobs_run_on_the_tiny_shape(task: str, tmp_path: Path):
    path = tmp_path / "random.pth"
    inputs.make_checkpoint(path, "tiny")
    call, logits = ours.generation(task, path)
    call()
    assert len(logits) == inputs.SHAPES["tiny"]["vocab_size"]


def test_a_step_of_every_method_is_timed_on_the_tiny_shape(capsys):
    assert steps.main(["--shape", "tiny", "--length", "32", "--rounds", "1", "--only", "dbp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["method", "standard", "dbp"]
    assert lines[2].endswith("| 1.00 |")


def test_tokenizers_race_on_files_and_agree(tmp_path: Path, capsys):
    plain, lines, wrong = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    plain.write_text("Mira lives in Dorn.\n")
    lines.write_text('{"text": "käse"}\n\n{"text": "你好"}\n')
    wrong.write_text("[1]\n")
    lacking = tmp_path / "d.jsonl"
    lacking.write_text('{"text": ""}\n{"prompt": "a"}\n')
    assert tokenizer.main([str(plain), str(lines)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| a.txt", "20"], ["| b.jsonl", "11"]]
    for words, message in (
        ([str(wrong)], "c.jsonl:1: a JSON object"),
        ([str(lacking)], "d.jsonl:2: no string"),
        ([str(tmp_path / "no.txt")], "no.txt"),
    ):
        assert tokenizer.main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match="do not agree on b'ab'"):
        tokenizer.race([b"ab"], {"ours": list, "theirs": lambda row: [len(row)]})
