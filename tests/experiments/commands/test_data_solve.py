"""`rwkv7 data solve`: what is written, and what it says where nothing is."""

import json
from pathlib import Path

import pytest

from experiments import cli
from experiments.commands.work import solve as work
from experiments.config.data_info import SolveDataConfig
from experiments.evaluation.solving import Round, Sampling, Solution
from experiments.pocket import benchmarks
from experiments.tasks.chains import chained


@pytest.fixture
def argv(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    words = ["--model.checkpoint", str(tiny_checkpoint), "--model.wkv", "scan", "--compilation_cache", "no"]
    return ["data", "solve", *words, "--output", str(tmp_path / "out.jsonl"), "--problems", "5"]


def test_accepted_samples_are_written_for_tuning_and_the_examples_before_them_are_not(
    argv: list[str], tmp_path: Path, monkeypatch, capsys
):
    seen = {}

    def sampled(lm, state, items, sampling, before, tick):
        seen.update(items=items, sampling=sampling, before=before)
        tick(5, 1)
        return Round([Solution(0, items[0].problem.prompt, " 1 + 1 = 2\n#### 2", 3)], 10, 2, 4)

    monkeypatch.setattr(work.solving, "solve", sampled)
    args = ["--data.tasks", "pocket:gsm8k", "--data.chain", "gold", "--shots", "2", "--wanted", "3", "--seed", "7"]
    assert cli.main([*argv, *args]) == 0
    task, records = chained("gsm8k", "gold"), benchmarks.load("gsm8k", "train")
    assert [item.problem.prompt for item in seen["items"]] == [task.prompt(record) for record in records[2:7]]
    shots = "".join("".join(task.to_example(record)) + "\n\n" for record in records[:2])
    assert set(seen["before"]) == {shots}
    assert seen["sampling"] == Sampling(3, 8, 32, 1.0, 96, 7)
    (line,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert line == {"prompt": task.prompt(records[2]), "completion": " 1 + 1 = 2\n#### 2"}
    told = capsys.readouterr().out
    assert "1 of 5 problems solved, fewer than the 3 wanted: 20.0% of 10 samples are right; 4 did not end" in told
    assert f"rwkv7 tune --config jsonl --data.train {tmp_path / 'out.jsonl'}" in told


def test_the_checker_takes_the_exact_answer_alone():
    record = benchmarks.load("gsm8k", "train")[0]
    (item,) = work.load(SolveDataConfig(("pocket:gsm8k",), chain="gold"), 1)
    answer = record["answer"].rpartition("#### ")[2]
    assert item.correct([f" so\n#### {answer}"]) == 1.0
    assert item.correct([f" so {answer}"]) == 0.0
    assert item.correct([f"#### {int(answer) + 1}"]) == 0.0


def test_a_file_of_ones_own_is_checked_by_its_last_number(tmp_path: Path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"prompt": "2+2?", "completion": "It is 4."}\n')
    (item,) = work.load(SolveDataConfig(file=str(path)), 3)
    assert item.correct(["2 + 2 = 4"]) == 1.0
    assert item.correct(["4 and 5"]) == 0.0
    assert work.solved(SolveDataConfig(file=str(path)), 1) == [("2+2?", "It is 4.")]


def test_with_nothing_accepted_nothing_is_written(argv: list[str], tmp_path: Path, capsys):
    args = ["--data.tasks", "pocket:gsm8k", "--data.chain", "gold", "--samples", "1", "--max_new_tokens", "2"]
    assert cli.main([*argv, *args, "--batch_size", "4"]) == 1
    assert "RESULT: FAIL (nothing is written" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "say what to solve"),
        (["--data.tasks", "pocket:mmlu"], "pocket:mmlu is answered by likelihoods: add --data.chain NAME"),
        (["--data.tasks", "pocket:mmlu,pocket:arc"], "one benchmark at a time"),
        (["--data.tasks", "pocket:gsm8k", "--data.chain", "gould"], "data.chain: gsm8k has no phrasing 'gould'"),
        (["--data.tasks", "pocket:gsm8k", "--temperature", "0"], "temperature above 0"),
        (["--data.file", "none.jsonl"], "no file none.jsonl"),
    ],
)
def test_what_cannot_be_solved_is_one_line(argv: list[str], args: list[str], line: str, capsys):
    assert cli.main([*argv, *args]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
