"""`auto` in a run: what is chosen is told, kept, and equal to a run that names it."""

import json
from pathlib import Path

import pytest

from experiments.choosing import run as choosing
from experiments.cli import main
from experiments.config.loading import load_config
from experiments.config.schema import DataConfig, EvaluateConfig, RunConfig
from experiments.data.jobs import load_jobs
from experiments.study import learning_rates
from experiments.tasks import phrasings


@pytest.fixture
def argv(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    lines = (f'{{"prompt": "say {i}:", "completion": " {i}{i}"}}\n' for i in range(40))
    (tmp_path / "my.jsonl").write_text("".join(lines))
    words = "--config jsonl --tune.steps 2 --tune.warmup 0 --data.batch_size 4 --model.wkv scan --report.plots no"
    more = "--report.samples 0 --system.validate_every 0 --system.compilation_cache false"
    paths = ["--model.checkpoint", str(tiny_checkpoint), "--data.train", str(tmp_path / "my.jsonl")]
    return ["tune", *words.split(), *more.split(), *paths, "--output", str(tmp_path / "out")]


@pytest.fixture(autouse=True)
def two_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ladder of two rates, so that few are tried."""
    monkeypatch.setattr(learning_rates, "LADDER", (0.1, 1.0))
    monkeypatch.setattr(choosing.rate, "LADDER", (0.1, 1.0))
    monkeypatch.setattr(choosing.rate, "climb", lambda loss, starts: min(starts, key=loss))


def test_the_chosen_rate_is_told_kept_and_that_of_the_run(argv: list[str], tmp_path: Path, capsys):
    assert main([*argv, "--tune.learning_rate", "auto"]) in (0, 1)
    told = capsys.readouterr().out
    tries = [json.loads(line) for line in (tmp_path / "out" / "rates.jsonl").read_text().splitlines()]
    assert [one["rate"] for one in tries] == [1.0, 0.1]
    best = min(tries, key=lambda one: one["loss"])["rate"]
    assert f"tune.learning_rate auto: {best:g}, the least of 0.1: " in told
    assert "2 runs of 2 of 2 steps, loss on " in told
    assert "records of the training file" in told
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["config"]["tune"]["learning_rate"] == best
    again = [*argv, "--tune.learning_rate", f"{best:g}"]
    assert main(again) in (0, 1)
    assert "earlier" not in capsys.readouterr().err


def test_tries_are_read_back(argv: list[str], tmp_path: Path, capsys, monkeypatch):
    assert main([*argv, "--tune.learning_rate", "auto"]) in (0, 1)
    kept = (tmp_path / "out" / "rates.jsonl").read_text()

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(choosing.Chooser, "_tuned", never)
    assert main([*argv, "--tune.learning_rate", "auto"]) in (0, 1)
    assert (tmp_path / "out" / "rates.jsonl").read_text() == kept


def test_records_that_the_run_reports_choose_nothing(tmp_path: Path):
    (tmp_path / "my.jsonl").write_text("".join(f'{{"prompt": "{i}", "completion": "{i}"}}\n' for i in range(60)))
    for data, evaluate in (
        (DataConfig(train=str(tmp_path / "my.jsonl")), EvaluateConfig()),
        (DataConfig(("pocket:arc",)), EvaluateConfig(max_records=20)),
        (DataConfig(("pocket:arc",)), EvaluateConfig(split="validation", max_records=20)),
    ):
        (job,) = load_jobs(data, evaluate, 0)
        (short,) = choosing.short_jobs(data, evaluate, 0)
        assert short.held_out
        assert not set(short.held_out) & set(job.held_out)
        assert not set(short.held_out) & set(short.train)


def test_a_phrasing_is_chosen_by_right_answers_on_the_validation_split(
    tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(phrasings, "BY_TASK", {"mmlu": {"took": phrasings.CHOICES["took"], "so": " {value} {letter}"}})
    monkeypatch.setattr(choosing.phrasing, "RECORDS", 4)
    words = "--config quickstart --data.tasks pocket:mmlu --data.chain auto --tune.steps 1 --data.max_train 8"
    words += " --data.batch_size 4 --evaluate.max_records 4 --evaluate.max_new_tokens 2 --model.wkv scan"
    words += " --report.plots no --report.samples 0 --system.validate_every 0 --system.compilation_cache false"
    args = ["tune", *words.split(), "--model.checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "out")]
    assert main(args) in (0, 1)
    assert "data.chain auto: mmlu=took (0% right on 4 validation records; so 0%)" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["config"]["data"]["chain"] == "mmlu=took"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--mesh.processes", "2"], "run in one process"),
        (["--data.chain", "auto", "--data.tasks", "gsm8k"], "data.chain auto needs the validation split"),
        (["--data.chain", "took"], "data.chain goes with benchmarks"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(argv: list[str], words: list[str], line: str, capsys):
    assert main([*argv, "--tune.learning_rate", "auto", *words]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


def test_auto_is_a_rate_of_runs_alone(capsys):
    assert main(["sweep", "--config", "quickstart", "--tune.learning_rate", "auto"]) == 2
    assert "'auto' is not a number" in capsys.readouterr().err
    config = load_config("quickstart", ["--tune.learning_rate", "auto"], RunConfig)
    assert config.tune.is_automatic
    assert load_config("quickstart", ["--tune.learning_rate", "none"], RunConfig).tune.learning_rate is None
    assert main(["tune", "--config", "quickstart", "--tune.learning_rate", "fast"]) == 2
    assert "tune.learning_rate: 'fast' is not a number" in capsys.readouterr().err
