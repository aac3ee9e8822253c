"""The test-time command: a curve with every control, a killed run that goes on, and what it refuses."""

import json
from pathlib import Path

import pytest

from experiments.commands import scale as command
from experiments.commands.work import scale as work
from experiments.config.loading import parse
from experiments.config.overrides import UsageError
from experiments.config.scale import Scale
from experiments.evaluation import problems, scaling
from experiments.pocket import benchmarks
from experiments.reporting import accuracy_curve, jsonl_store
from experiments.reporting.plots import pyplot
from experiments.tasks import TASKS
from state_tuning.test_time_scaling.rollouts import NOT_CHOSEN
from state_tuning.test_time_scaling.selection import majority


@pytest.fixture
def words(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "my.jsonl"
    data.write_text("".join(f'{{"prompt": "say {i}:", "completion": " {i}"}}\n' for i in range(5)))
    model = ["--model.checkpoint", str(tiny_checkpoint), "--teacher.checkpoint", str(tiny_checkpoint)]
    model += ["--system.compilation_cache", "no"]
    sizes = ["--adapt.samples", "2", "--adapt.steps", "1", "--adapt.max_new_tokens", "3"]
    sizes += ["--batch-size", "2", "--limit", "4"]
    return [*model, "--data.file", str(data), *sizes, "--output", str(tmp_path / "out")]


def rows(folder: Path) -> list[dict]:
    """Without seconds, which are the only thing that may differ."""
    found = jsonl_store.read(folder / "answers.jsonl")
    for row in found:
        for line in row["lines"]:
            assert line.pop("seconds") > 0
    return found


def test_a_killed_run_goes_on_and_ends_like_an_uninterrupted_one(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert command.main(words) == 0
    printed, whole = capsys.readouterr().out, rows(out)
    assert [row["index"] for row in whole] == [0, 1, 2, 3]
    methods = {(line["method"], line["n"]) for line in whole[0]["lines"]}
    alike = ("adapted", "adapted_vote", "self_consistency", "best_of_n", "weighted_vote")
    assert methods == {("greedy", 1), ("larger", 1), *((name, 3) for name in alike)}
    assert "| best-of-N, same scorer | 3 |" in printed
    assert (out / "curve.png").stat().st_size > 1000
    points = json.loads((out / "curve.json").read_text())["points"]
    assert [p["method"] for p in points] == [name for name in accuracy_curve.METHODS if name not in ("added", "search")]
    log = out / "answers.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:20])
    asked = []
    real = scaling.answer
    monkeypatch.setattr(scaling, "answer", lambda s, items, search: asked.append(len(items)) or real(s, items, search))
    assert command.main(words) == 0
    assert asked == [2]
    assert rows(out) == whole
    capsys.readouterr()
    assert command.main([*words, "--seed", "1"]) == 2
    told = capsys.readouterr().err
    assert "other settings" in told
    assert "choose another --output, or" in told
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    assert command.main([*words, "--output", str(other), "--overwrite"]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_a_search_and_settings_of_chains_are_part_of_the_run(words, tmp_path, capsys):
    extra = ["--search.beams", "2", "--search.span", "2", "--limit", "2", "--adapt.signal", "reward"]
    assert command.main([*words, *extra]) == 0
    assert "| search in state space, weighted vote | 2 |" in capsys.readouterr().out
    line = next(line for line in rows(tmp_path / "out")[0]["lines"] if line["method"] == "search")
    assert 0 < line["student_tokens"] <= 2 * 3
    assert line["teacher_tokens"] > line["student_tokens"]
    config = parse(
        Scale(), ["--teacher.checkpoint", "t.pth", *extra, "--data.chain", "took", "--teacher.state", "s.st"]
    )
    found = work.identity_settings(config)
    assert (found["chain"], found["teacher_state"], found["search"]["beams"]) == ("took", "s.st", 2)


def test_a_run_that_got_no_answer_changes_nothing(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "my_notes.txt").write_text("dear")
    (out / "run.json").write_text('{"identity": "another"}')
    (out / "answers.jsonl").write_text('{"index": 0, "lines": []}\n')
    (out / "curve.md").write_text("old")
    before = {path: path.read_text() for path in out.iterdir()}

    def refuse(session, items, search):
        raise ValueError("the server knows no such model")

    with monkeypatch.context() as patch:
        patch.setattr(scaling, "answer", refuse)
        assert command.main([*words, "--overwrite"]) == 2
    assert "no such model" in capsys.readouterr().err
    assert {path: path.read_text() for path in out.iterdir()} == before
    (out / "answers.jsonl").unlink()
    line = {"n": 1, "correct": 1.0, "student_tokens": 1, "teacher_tokens": 1, "seconds": 0.5}
    monkeypatch.setattr(scaling, "answer", lambda session, items, search: [[{"method": "greedy", **line}]] * len(items))
    assert command.main(words) == 0
    assert (out / "my_notes.txt").read_text() == "dear"
    assert len(rows(out)) == 4


@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "winogrande", "arc"])
def test_benchmark_records_become_problems_that_judge_themselves(name):
    (record,) = benchmarks.load(name, "validation")[:1]
    (item,) = problems.load(f"pocket:{name}", None, "text", "validation", 1)
    if name == "gsm8k":
        assert item.problem.choices == ()
        assert item.correct([record["answer"]]) == 1.0
        assert item.correct(["no idea"]) == 0.0
        assert item.answer("no idea") is None
        assert item.answer(record["answer"]) is not None
    else:
        count = len(item.problem.choices)
        judged = [item.correct([0.0 if i == k else NOT_CHOSEN for i in range(count)]) for k in range(count)]
        assert sorted(judged) == [0.0] * (count - 1) + [1.0]


def test_votes_are_counted_by_value(tmp_path: Path):
    data = tmp_path / "my.jsonl"
    data.write_text('{"prompt": "9+9?", "completion": "18"}\n')
    (mine,) = problems.load(None, str(data), "number", "test", 9)
    gsm8k = problems.from_record(TASKS["gsm8k"], {"question": "9+9?", "answer": "so #### 18"})
    texts = ["it is 7", "so 18", "no idea", "#### 18.00", "$18."]
    for item in (mine, gsm8k):
        assert majority([item.answer(text) for text in texts]) == 1
    assert gsm8k.correct(["#### 18.00"]) == 0.0, "the score stays that of lm-evaluation-harness"


def test_answers_of_a_file_are_compared_as_text_or_by_their_last_number(tmp_path: Path):
    data = tmp_path / "my.jsonl"
    data.write_text('{"prompt": "2+2?", "completion": " It is  4.0"}\n')
    (text,) = problems.load(None, str(data), "text", "test", 9)
    (number,) = problems.load(None, str(data), "number", "test", 9)
    assert text.correct(["it is 4.0 "]) == 1.0
    assert text.correct(["4"]) == 0.0
    assert number.correct(["3 or 4"]) == 1.0
    assert number.correct(["none"]) == 0.0
    assert number.correct(["it is 4.00"]) == number.correct(["$4"]) == 1.0
    assert number.correct(["it is .4"]) == number.correct(["\u22124"]) == number.correct(["14"]) == 0.0
    data.write_text('{"prompt": "?", "completion": "none"}\n')
    with pytest.raises(UsageError, match=r"my\.jsonl:1: the completion has no number"):
        problems.load(None, str(data), "number", "test", 9)


def test_the_curve_averages_and_pairs():
    def row(*correct):
        cost = {"student_tokens": 10, "teacher_tokens": 4, "seconds": 0.5}
        names = ("adapted", "best_of_n", "self_consistency")
        return {"lines": [{"method": m, "n": 9, "correct": c, **cost} for m, c in zip(names, correct, strict=True)]}

    found = [row(1.0, 0.0, 1.0), row(1.0, 0.0, 1.0), row(0.0, 0.0, 0.0), row(1.0, 1.0, 1.0)]
    points = {p["method"]: p for p in accuracy_curve.curve(found)}
    assert points["adapted"]["mean"] == 0.75
    assert points["best_of_n"]["student_tokens"] == 10
    gains = {(g["method"], g["against"]): g["mean"] for g in accuracy_curve.differences(found, 0)}
    assert gains == {("adapted", "self_consistency"): 0.0, ("adapted", "best_of_n"): 0.5}


def test_the_legend_hides_nothing_of_the_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pyplot(), "close", drawn.append)
    cost = {"student_tokens": 10, "teacher_tokens": 4}
    points = [{"method": "adapted", "n": n, "mean": 0.5, "low": 0.2, "high": 0.8, **cost} for n in (3, 5)]
    accuracy_curve.picture(tmp_path / "curve.png", points)
    (figure,) = drawn
    assert not any(axis.get_legend() for axis in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adapted"]


REPLAY = "teacher.replay=no.jsonl"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--teacher.checkpoint", "http://127.0.0.1:1/v1"], "teacher.model"),
        (
            ["--teacher.checkpoint", "http://127.0.0.1:1/v1", "--teacher.model", "m", "--teacher.offline"],
            "teacher.offline needs --teacher.replay FILE",
        ),
        (["--teacher.checkpoint", "nowhere.pth"], "teacher.checkpoint: no file nowhere.pth"),
        (["--model.checkpoint", "nowhere.pth"], "model.checkpoint: no file nowhere.pth"),
        (["--adapt.samples", "0"], "must be at least 1"),
        (["--data.tasks", "chess"], "data.tasks: no task 'chess'"),
        (["--data.tasks", "gsm8k", "--data.file", "none"], "data.tasks: gsm8k is the real benchmark: give --data.dir"),
        (
            ["--teacher.checkpoint", "http://127.0.0.1:1/v1", "--teacher.model", "m", "--teacher.offline", REPLAY],
            "no replay",
        ),
    ],
)
def test_wrong_settings_are_told_in_one_line(words: list[str], extra: list[str], message: str, capsys):
    assert command.main([*words, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_identity_of_a_run_has_every_setting_that_its_answers_depend_on():
    words = "--data.tasks pocket:gsm8k --teacher.checkpoint t.pth --model.checkpoint c.pth --adapt.steps 2"
    found = work.identity_settings(parse(Scale(), [*words.split(), "--adapt.rate", "0.02"]))
    assert found == {
        "batch_size": 16, "chain_steps": 0, "checkpoint": "c.pth", "clip_norm": 1.0, "data": None, "kl": 0.0,
        "match": "text", "max_new_tokens": 96, "max_records": 100, "norm_cap": 1.0, "rate": 0.02,
        "reward": "log_probability", "samples": 8, "seed": 0, "split": "test", "state": None, "steps": 2,
        "task": "gsm8k", "teacher": "t.pth", "teacher_api": "completions", "teacher_model": None,
        "teacher_tokenizer": "auto", "temperature": 1.0, "tokenizer": "auto", "signal": "auto", "units": "state",
        "floor": 0.1, "divergence": "reverse", "mixture": 0.5, "baseline": "leave_one_out", "vote": 4.0,
        "choice_weight": 0.5, "agreement": 0.0,
    }  # fmt: skip
    real = ["--data.tasks", "gsm8k", "--data.dir", "data", "--model.dtype", "bfloat16"]
    other = work.identity_settings(parse(Scale(), [*words.split(), "--adapt.rate", "0.02", *real]))
    assert other == found | {"dir": "data", "dtype": "bfloat16"}
