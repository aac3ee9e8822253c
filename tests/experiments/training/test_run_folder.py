"""The output folder of a run: held by one process, and left as it was if nothing came in."""

import pytest

from experiments.commands import evaluate, pretrain, scale, study, sweep, tune
from experiments.config.overrides import UsageError
from experiments.training.run_folder import check, held
from rwkv7_jax.locks import Locked, lock

RUN = ["--data.train", "my.jsonl", "--output", "out"]
COMMANDS = {
    "tune": (tune, ["--config", "jsonl", *RUN]),
    "sweep": (sweep, ["--config", "jsonl", *RUN]),
    "scale": (scale, ["--data.file", "my.jsonl", "--teacher.checkpoint", "pocket/teacher", "--output", "out"]),
    "study": (study, ["run", "--config", "paper_table_fast", "--output", "out"]),
    "study rates": (study, ["rates", "--config", "paper_table_fast", "--output", "out"]),
    "pretrain": (pretrain, ["--config", "pretrain_student", "--output", "out"]),
}


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path):
    with held(tmp_path / "runs" / "a"):
        assert not check(tmp_path / "runs" / "a", "mine")
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a"):
        (tmp_path / "a" / "x").write_text("")
        with pytest.raises(Locked, match="choose another --output"), held(tmp_path / "a"):
            pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    with pytest.raises(UsageError, match="is a file"), held(tmp_path / "a" / "x"):
        pass


def test_what_a_killed_process_has_not_finished_does_not_block_the_folder(tmp_path):
    (tmp_path / ".run.json.7scbfzbc.tmp").write_text('{"iden')
    (tmp_path / ".lock").write_text("")
    with held(tmp_path):
        assert not check(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".notes.tmp").write_text("")
    with held(tmp_path), pytest.raises(UsageError, match="holds other files"):
        check(tmp_path, "mine")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_the_folder_of_another_process_alone(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = (f'{{"prompt": "{i}:", "completion": " {i}{i}"}}\n' for i in range(12))
    (tmp_path / "my.jsonl").write_text("".join(lines))
    (tmp_path / "out").mkdir()
    module, words = COMMANDS[name]
    with lock(tmp_path / "out"):
        assert module.main([*words, "--system.compilation_cache", "no"][: None if name != "pretrain" else -2]) == 2
    told = capsys.readouterr().err
    assert "error: out is being written by process" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


def test_an_evaluation_that_runs_already_is_not_begun_again(tiny_checkpoint, tmp_path, capsys):
    words = ["--model.checkpoint", str(tiny_checkpoint), "--data.tasks", "pocket:winogrande", "--limit", "1"]
    words += ["--output", str(tmp_path), "--system.compilation_cache", "no"]
    assert evaluate.main(words) == 0
    (path,) = tmp_path.iterdir()
    with lock(path):
        assert evaluate.main(words) == 2
    assert f"{path} is being written by process" in capsys.readouterr().err
