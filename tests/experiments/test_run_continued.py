"""Runs that go on with other settings, from a state file, or after an interruption; states in checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import run, session
from experiments.commands.state import main as state_main
from rwkv7_jax.checkpoint import export_state, load_state, save_state
from tests.experiments.test_run import interrupt_at, one_error, result

STEPS = 6


@pytest.fixture(scope="module")
def argv(tiny_checkpoint, tmp_path_factory):
    """The command, without --output: digits repeated, which a state learns at once."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"prompt": f"{i}", "completion": "ab" * (1 + i % 3)} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--config jsonl --tune.steps {STEPS} --tune.learning_rate 0.3 --tune.warmup 1 --data.batch_size 4"
    more = "--evaluate.batch_size 4 --system.checkpoint_every 3 --report.sample_tokens 4 --model.wkv scan"
    files = ["--model.checkpoint", str(tiny_checkpoint), "--data.train", str(path), "--report.plots", "no"]
    return [*words.split(), *more.split(), *files, "--system.compilation_cache", "no"]


@pytest.fixture(scope="module")
def finished(argv, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run.main([*argv, "--output", str(folder)]) == 0
    return folder


def tuned_state(folder):
    """The arrays of the state that a run in `folder` tuned."""
    return np.asarray(load_state(folder / "jsonl/state.safetensors").state.wkv)


def test_the_settings_that_differ_are_named(argv, finished, tmp_path, capsys):
    command = [*argv, "--output", str(finished)]
    assert run.main([*command, "--tune.l2", "0.1", "--data.max_length", "64"]) == 2
    assert "other settings (data.max_length: 512 there, 64 here, tune.l2: 0.0 there, 0.1 here)" in one_error(capsys)
    assert run.main([*command, "--tune.steps", str(STEPS + 1)]) == 2
    error = one_error(capsys)
    assert f"tune.steps: {STEPS} there, {STEPS + 1} here" in error
    assert "--tune.schedule constant" in error
    assert "--tune.init" in error
    train = argv[argv.index("--data.train") + 1]
    (tmp_path / "other.jsonl").write_text(Path(train).read_text().replace("ab", "cd"))
    assert run.main([*command, "--data.train", str(tmp_path / "other.jsonl")]) == 2
    assert "the same settings and other training data" in one_error(capsys)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the undisturbed run, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_another_prompt_is_free(argv, copied, finished, monkeypatch):
    monkeypatch.setattr(session, "measure", lambda *_: pytest.fail("nothing is measured again"))
    words = ["--report.prompt", "7", "--name", "mine", "--output", str(copied)]
    moved = copied.parent / "moved.jsonl"
    moved.write_text(Path(argv[argv.index("--data.train") + 1]).read_text())
    assert run.main([*argv, *words, "--data.train", str(moved)]) == 0
    (body, rows, _), (before, rows_before, _) = result(copied), result(finished)
    assert body["samples"]["jsonl"][0]["prompt"] == "7"
    assert (rows, body["jobs"]) == (rows_before, before["jobs"])
    np.testing.assert_array_equal(tuned_state(copied), tuned_state(finished))
    assert not (copied / "jsonl/earlier.json").exists()


def test_other_held_out_records_are_measured_anew(argv, copied, finished):
    assert run.main([*argv, "--evaluate.max_records", "2", "--output", str(copied)]) == 0
    (body, rows, _), (before, rows_before, _) = result(copied), result(finished)
    assert (body["jobs"]["jsonl"]["records"], before["jobs"]["jsonl"]["records"]) == (2, 3)
    assert rows == rows_before
    np.testing.assert_array_equal(tuned_state(copied), tuned_state(finished))


def test_a_finished_run_takes_more_steps(argv, tmp_path, capsys):
    words = [*argv, "--tune.schedule", "constant", "--system.validate_every", "2", "--output"]
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    assert run.main([*words, str(whole)]) == 0
    assert run.main([*words, str(grown), "--tune.steps", "4"]) == 0
    assert run.main([*words, str(grown)]) == 0
    assert result(grown) == result(whole)
    assert [row["step"] for row in result(grown)[1] if "validation_loss" in row] == [2, 4, 6]
    capsys.readouterr()
    assert run.main([*words, str(grown), "--tune.steps", "4"]) == 2
    assert f"tune.steps: 4 is less than the {STEPS} steps" in one_error(capsys)


def test_a_run_starts_from_a_state_of_any_tool(argv, finished, tmp_path, capsys):
    given = load_state(finished / "jsonl/state.safetensors").state
    export_state(tmp_path / "given.pth", given, layout="rlhf")
    words = ["--tune.init", str(tmp_path / "given.pth"), "--tune.init_layout", "rlhf"]
    for method in ("standard", "upscale_dbp"):
        folder = tmp_path / method
        assert run.main([*argv, *words, "--method.kind", method, "--output", str(folder)]) in (0, 1)
        assert result(folder)[1][0]["loss"] < 0.98 * result(finished)[1][0]["loss"]
    capsys.readouterr()
    command = [*argv, "--output", str(tmp_path / "standard")]
    assert run.main(command) == 2
    assert "other start (tune.init)" in one_error(capsys)
    assert run.main([*command, "--tune.init", str(tmp_path / "given.pth"), "--overwrite"]) == 2
    assert "axis order cannot be seen" in one_error(capsys)
    assert run.main([*command, "--tune.init", str(tmp_path / "nowhere.pth"), "--overwrite"]) == 2
    assert "no such state file" in one_error(capsys)
    save_state(tmp_path / "shifts.st", given._replace(att_shift=given.att_shift + 1), metadata={})
    assert run.main([*command, "--tune.init", str(tmp_path / "shifts.st"), "--overwrite"]) == 2
    assert "--tune.tune_shifts yes" in one_error(capsys)
    assert (tmp_path / "standard/results.json").exists()


def test_the_best_state_and_that_of_an_interrupted_run_are_files(argv, finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    command = [*argv, "--output", str(folder), "--system.validate_every", "2"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run.main(command) == 130
    last = folder / "jsonl/last.safetensors"
    assert f"the state after step 5 is {last}" in capsys.readouterr().err
    assert state_main(["convert", str(folder / "jsonl/checkpoints/step_00000005"), str(tmp_path / "five.st")]) == 0
    five, kept = load_state(tmp_path / "five.st"), load_state(last)
    np.testing.assert_array_equal(five.state.wkv, kept.state.wkv)
    assert five.metadata["base_model_hash"] == kept.metadata["base_model_hash"]
    assert run.main(command) == 0
    assert not last.exists()
    losses = {row["step"]: row["validation_loss"] for row in result(folder)[1] if "validation_loss" in row}
    assert list(losses) == [2, 4, 6]
    best = load_state(folder / "jsonl/best.safetensors")
    step = min(losses, key=losses.__getitem__)
    assert json.loads(best.metadata["metrics"]) == {"step": step, "validation_loss": losses[step]}
    if step == STEPS:
        np.testing.assert_array_equal(best.state.wkv, tuned_state(folder))
    np.testing.assert_array_equal(tuned_state(folder), tuned_state(finished))


def test_patience_ends_a_run_early_and_less_of_it_lets_it_go_on(argv, finished, tmp_path, monkeypatch, capsys):
    """An interrupted run ends where an undisturbed one does; its state is that of the step at which it ends."""
    folder, planned = tmp_path / "run", iter([3.0, 2.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(session, "measure_losses", lambda *args: next(planned))
    command = [*argv, "--output", str(folder), "--system.validate_every", "1"]
    patient = [*command, "--tune.patience", "2"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert run.main(patient) == 130
    assert run.main(patient) == 0
    best = folder / "jsonl/best.safetensors"
    said = (
        "jsonl: stops after step 4: the held-out loss has not fallen for 2 measurements (2.0000 at step 2, 5.0000 now)"
    )
    assert f"{said}; the state of step 2 is {best}" in capsys.readouterr().err
    rows = result(folder)[1]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert state_main(["convert", str(folder / "jsonl/checkpoints/step_00000004"), str(tmp_path / "four.st")]) == 0
    np.testing.assert_array_equal(load_state(tmp_path / "four.st").state.wkv, tuned_state(folder))
    assert not np.array_equal(tuned_state(folder), tuned_state(finished))
    assert json.loads(load_state(best).metadata["metrics"])["step"] == 2
    assert run.main(command) == 0
    np.testing.assert_array_equal(tuned_state(folder), tuned_state(finished))
    capsys.readouterr()
    assert run.main([*argv, "--output", str(folder), "--system.validate_every", "0", "--tune.patience", "1"]) == 2
    assert "tune.patience needs held-out losses" in one_error(capsys)


def test_a_checkpoint_becomes_a_state_file_of_any_tool(finished, tmp_path, capsys):
    steps = finished / "jsonl/checkpoints"
    assert state_main(["convert", str(steps), "--to", "fla", "--output", str(tmp_path / "last.pth")]) == 0
    np.testing.assert_array_equal(load_state(tmp_path / "last.pth", layout="fla").state.wkv, tuned_state(finished))
    assert state_main(["info", str(steps / f"step_{STEPS:08d}")]) == 0
    assert "method: standard" in capsys.readouterr().out
    (tmp_path / "step_00000001").mkdir()
    assert state_main(["convert", str(tmp_path / "step_00000001"), str(tmp_path / "x.st")]) == 2
    assert "not a checkpoint in the folder of a run" in one_error(capsys)
    assert state_main(["convert", str(steps), str(tmp_path / "x.pth")]) == 2
    assert "name the layout" in one_error(capsys)


def test_a_state_that_is_absurdly_large_does_not_pass(argv, tmp_path, capsys):
    words = ["--tune.learning_rate", "1e6", "--output", str(tmp_path / "run")]
    assert run.main([*argv, *words]) == 1
    said = capsys.readouterr()
    assert "RESULT: FAIL (the state is out of scale, lower tune.learning_rate: jsonl)" in said.out
    assert "warning: jsonl: the tuned state is " in said.err
