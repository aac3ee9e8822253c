"""The learning-rate sweep: one row a cell, read back on the second run, and a table that shows the means."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import build, session
from experiments.commands import sweep
from experiments.commands.work import sweep as work
from experiments.config.loading import load_config, split_config
from experiments.config.schema import RunConfig, check
from experiments.data import batching
from experiments.data.jobs import load_jobs
from experiments.reporting import plots
from experiments.session import Session
from experiments.study import learning_rates
from rwkv7_jax import checkpoint
from state_tuning.core.non_finite import NonFiniteError

Argv = list[str]


@pytest.fixture
def argv(tiny_checkpoint: Path, tmp_path: Path) -> Argv:
    write_data(tmp_path, "say")
    args = ["--config", "jsonl", "--model.checkpoint", str(tiny_checkpoint), "--data.train", str(tmp_path / "my.jsonl")]
    args += ["--output", str(tmp_path / "out"), "--tune.steps", "2", "--tune.warmup", "0", "--model.wkv", "scan"]
    return [*args, "--seeds", "0", "--extend", "no", "--system.compilation_cache", "false"]


def write_data(folder: Path, word: str) -> None:
    lines = (f'{{"prompt": "{word} {i}:", "completion": " {i}{i}"}}\n' for i in range(12))
    (folder / "my.jsonl").write_text("".join(lines))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "sweep.jsonl").read_text().splitlines()]


def test_what_is_tuned_on_and_cut_is_told_before_the_rates(argv: Argv, monkeypatch, capsys):
    def ended(*_: object, **__: object) -> None:
        raise ValueError("ended")

    monkeypatch.setattr(work, "climbed", ended)
    assert sweep.main([*argv, "--tune.learning_rate", "0.1", "--data.max_length", "5"]) == 2
    told = capsys.readouterr()
    assert "jsonl: 10 training records" in told.out
    assert "warning: jsonl: 10 of 10 training records" in told.err
    assert "--data.max_length" in told.err


def test_sweep_writes_each_cell_once(argv: Argv, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = [*argv, "--tune.learning_rate", "0.01,0.1"]
    assert sweep.main(args) == 0
    first, kept = capsys.readouterr().out, rows(tmp_path)
    with (tmp_path / "out" / "sweep.jsonl").open("a") as log:
        log.write('{"key": "cut o')
    assert sweep.main(args) == 0
    assert capsys.readouterr().out == first
    assert rows(tmp_path) == kept
    assert len(kept) == 2
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    assert "rate 0.01 | rate 0.1" in (tmp_path / "out" / "sweep.md").read_text()


def test_other_data_or_weights_behind_the_same_path_are_measured_anew(
    argv: Argv, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work, "losses", lambda *_: {"loss_vanilla": 3.0, "loss_tuned": 2.0})
    model = tmp_path / "model.safetensors"
    shutil.copy(tiny_checkpoint, model)

    def known() -> int:
        assert sweep.main([*argv, "--tune.learning_rate", "0.01", "--model.checkpoint", str(model)]) == 0
        return len(rows(tmp_path))

    assert (known(), known()) == (1, 1)
    write_data(tmp_path, "shout")
    assert (known(), known()) == (2, 2)
    params = checkpoint.load(model).params
    params["head"]["weight"] = params["head"]["weight"] * 2
    checkpoint.save(model, params)
    assert (known(), known()) == (3, 3)


def test_a_rate_that_diverges_is_a_row_like_others(
    argv: Argv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def tune(session: Session, *_: object) -> float:
        rate = session.tuner.settings.learning_rate
        if rate == 1e38:
            raise NonFiniteError("step 5: update skipped")
        return rate

    monkeypatch.setattr(work, "tune", tune)
    monkeypatch.setattr(work, "finished", lambda tools, rate: (tools, math.nan if rate == 1e37 else rate))
    monkeypatch.setattr(work, "measure_losses", lambda _, state, __: state if isinstance(state, float) else 3.0)
    assert sweep.main([*argv, "--tune.learning_rate", "1e38,1e37,0.01"]) == 0
    assert [row["loss_tuned"] for row in rows(tmp_path)] == [None, None, 0.01]
    for _ in range(2):
        assert "| jsonl | 3.000 | 0.010 | inf | inf |" in capsys.readouterr().out
        assert sweep.main([*argv, "--tune.learning_rate", "1e38,1e37,0.01"]) == 0


def test_a_picture_of_rates_that_all_diverge(tmp_path: Path):
    assert learning_rates.finite_rates({1.0: (math.inf, 2.0, math.inf), 0.1: (2.0, 1.0, 3.0)}) == {0.1: (2.0, 1.0, 3.0)}
    plots.sweep_curves(tmp_path / "sweep.png", {"a": {}, "b": {0.1: (2.0, 1.0, 3.0)}}, {"a": 2.0, "b": 2.0})
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def measured(loss: Callable[[float], float]) -> Callable[[float], list[work.SweepRecord]]:
    """Records of one task as a sweep finds them."""
    return lambda rate: [{"task": "a", "seed": 0, "rate": rate, "loss_vanilla": 4.0, "loss_tuned": loss(rate)}]


@pytest.mark.parametrize(
    ("best", "tried", "ends"),
    [
        (0.1, [0.03, 0.1, 0.3, 1], False),
        (3, [0.03, 0.1, 0.3, 1, 3, 10], False),
        (0.003, [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1], False),
        (50, [0.03, 0.1, 0.3, 1, 3, 10], True),
        (1e-7, [1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1], True),
    ],
)
def test_the_ladder_goes_on_while_an_end_is_best(best: float, tried: list[float], ends: bool):
    rates = [0.3, 0.1, 0.03, 1]
    found = work.climbed(measured(lambda rate: abs(math.log(rate / best)) / 10), rates, extend=True)
    assert sorted(cell["rate"] for cell in found) == tried
    line = work.advice(found, "rwkv7 tune --config jsonl")
    nearest = min(tried, key=lambda rate: abs(math.log(rate / best)))
    assert line.startswith(f"take rate {nearest:g} (")
    assert line.endswith(f": rwkv7 tune --config jsonl --tune.learning_rate {nearest:g}")
    assert ("an end of the rates" in line) == ends
    assert len(work.climbed(measured(lambda rate: -rate), rates, extend=False)) == 4
    assert len(work.climbed(measured(lambda rate: -rate), [0.1], extend=True)) == 1


def test_rates_that_all_diverge_go_down_and_no_rate_is_advised():
    found = work.climbed(measured(lambda rate: math.inf), [0.3, 1], extend=True)
    assert min(cell["rate"] for cell in found) == 1e-4
    assert work.advice(found, "rwkv7 tune").startswith("no rate lowers the held-out loss")
    some = work.climbed(measured(lambda rate: math.inf if rate > 0.01 else 3.9 - rate), [0.3, 1], extend=True)
    assert work.advice(some, "rwkv7 tune").startswith("take rate 0.01 (")


def test_the_command_that_tunes_with_the_rate(
    argv: Argv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(work, "losses", lambda *_: {"loss_vanilla": 3.0, "loss_tuned": 2.0})
    assert sweep.main([*argv, "--tune.learning_rate=0.1,1", "--output=ignored", "--output", str(tmp_path / "out")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("take rate 0.1 (the held-out loss falls by 1.000; an end")
    words = last.split(": rwkv7 tune ")[1].split()
    assert words[-2:] == ["--tune.learning_rate", "0.1"]
    assert not {"--seeds", "--extend", "--output"} & set(words)
    assert "ignored" not in last
    config = load_config(*split_config(words))
    assert (config.tune.steps, config.tune.learning_rate) == (2, 0.1)


@pytest.mark.parametrize("kind", ["standard", "dbp"])
def test_one_compiled_step_serves_every_rate_bit_for_bit(argv: Argv, tmp_path: Path, kind: str):
    rates = (0.03, 1.0)
    words = [*argv, "--tune.steps", "4", "--tune.warmup", "2", "--method.kind", kind, "--evaluate.batch_size", "4"]
    assert sweep.main([*words, "--tune.learning_rate", ",".join(map(str, rates))]) == 0
    found = {row["rate"]: row["loss_tuned"] for row in rows(tmp_path)}
    for rate in rates:
        tuned = [word for i, word in enumerate(words) if not {"--extend", "--seeds"} & {word, *words[i - 1 : i]}]
        config = check(load_config(*split_config([*tuned, "--tune.learning_rate", str(rate)])))
        assert reference(config) == found[rate]


def reference(config: RunConfig) -> float:
    """The held-out loss after tuning with a step that is compiled for its rate alone."""
    lm = build.load_model(config.model)
    jobs = load_jobs(config.data, dataclasses.replace(config.evaluate, split="validation"), config.seed)
    tuner = session.make_tuner(lm, jobs, config.data, config.tune, config.method, config.seed)
    batches = batching.training_batches(
        batching.encode_pairs(lm.tokenizer, jobs[0].train, config.data), config.data.batch_size, 0
    )
    tuned = tuner.fresh()
    for batch in itertools.islice(batches, config.tune.steps):
        tuned, _ = tuner.step(lm.params, tuned, batch)
    params, state = tuner.chosen.finish(lm.params, tuned.trainable)
    evaluator = session.make_evaluator(lm.replace(params=params), config.evaluate)
    nll, tokens = evaluator.losses(state, batching.encode_pairs(lm.tokenizer, jobs[0].held_out, config.data))
    return float(nll.sum() / tokens.sum())


def test_table_shows_the_mean_over_seeds():
    rows: list[work.SweepRecord] = [
        {"task": "a", "rate": rate, "seed": seed, "loss_vanilla": 3.0, "loss_tuned": rate + seed}
        for rate in (0.5, 1.0)
        for seed in (0, 1)
    ]
    assert "| a | 3.000 | 1.000 | 1.500 |" in work.table(rows)
    assert "| mean fall |  | 2.000 | 1.500 |" in work.table(rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tune.learning_rate"], "tune.learning_rate needs a value"),
        (["--tune.learning_rate", ","], "tune.learning_rate and seeds need at least one number each"),
        (["--tune.learning_rate", "fast"], "tune.learning_rate: 'fast' is not a number"),
        (["--seeds", "1,x"], "seeds: 'x' is not a whole number"),
        (["--rates", "0.1"], "unknown key 'rates'; it is now --tune.learning_rate"),
    ],
)
def test_lists_that_are_none_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert sweep.main(["--config", "quickstart", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tune.learning_rate", "0.1,-1"], "tune.learning_rate: -1 is not a number above 0"),
        (["--tune.learning_rate", "nan"], "tune.learning_rate: nan must be finite"),
        (["--tune.learning_rate", "inf"], "tune.learning_rate: inf must be finite"),
        (["--seeds", "0,-1"], "seeds: -1 is negative"),
    ],
)
def test_wrong_rates_and_seeds_are_named(words: Argv, told: str, capsys: pytest.CaptureFixture[str]):
    assert sweep.main(["--config", "none", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_an_output_folder_that_is_a_file_is_named(argv: Argv, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").write_text("")
    assert sweep.main([*argv, "--tune.learning_rate", "0.1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: output: {tmp_path / 'out'} is a file")
