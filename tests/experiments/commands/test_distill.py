"""The command that compiles a prompt into a state: a file that works without the prompt, and the numbers it prints."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.commands import distill
from experiments.commands.work import distill as work
from rwkv7_jax.checkpoint import load_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.locks import lock
from state_tuning.core import surgery
from state_tuning.observer import distill as method

PROMPT = "Answer in capital letters. Be brief.\n"


@pytest.fixture
def words(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "system.txt").write_text(PROMPT)
    found = ["--model.checkpoint", str(tiny_checkpoint), "--prompt-file", str(tmp_path / "system.txt")]
    found += ["--system.compilation_cache", "no"]
    sizes = ["--texts", "6", "--length", "8", "--batch-size", "4", "--tune.steps", "12"]
    sizes += ["--tune.learning_rate", "0.03"]
    return [*found, *sizes, "--output", str(tmp_path / "state.safetensors")]


def divergences(output: str) -> dict[str, float]:
    lines = [line.split() for line in output.splitlines() if line.startswith("  ")]
    return {" ".join(line[:-1]): float(line[-1]) for line in lines}


def test_the_fitted_file_needs_no_prompt(words: list[str], tiny: LanguageModel, tmp_path: Path, capsys):
    assert distill.main([*words, "--rank", "2"]) == 0
    output = capsys.readouterr().out
    kl = divergences(output)
    assert kl["exact: matrices and token-shift states"] < 1e-5
    assert kl["written: fitted, 12 steps"] < kl["no prompt (zero state)"]
    assert {"rank 1, without token-shift states", "rank 2, not fitted"} <= set(kl)
    assert f"saved in every request: {len(PROMPT)} prompt tokens" in output
    loaded = load_state(tmp_path / "state.safetensors", config=tiny.model.config, base_model_hash=tiny.weights_hash)
    assert loaded.metadata["method"] == "distill"
    assert f'"prompt_tokens": {len(PROMPT)}' in loaded.metadata["metrics"]
    assert not loaded.state.att_shift.any()
    assert np.linalg.matrix_rank(np.asarray(loaded.state.wkv), tol=1e-4).max() == 2


def test_with_the_shifts_the_file_is_the_prompt(words: list[str], tiny: LanguageModel, tmp_path: Path, capsys):
    data = tmp_path / "text.jsonl"
    data.write_text("".join(f'{{"prompt": "say {i}", "completion": " {i}{i}"}}\n' for i in range(6)))
    assert distill.main([*words, "--keep-shifts", "--data.train", str(data)]) == 0
    assert "fitted" not in capsys.readouterr().out
    state = load_state(tmp_path / "state.safetensors").state
    exact = method.compile_prompt(tiny.model, tiny.params, tiny.tokenizer.encode(PROMPT))
    np.testing.assert_allclose(state.wkv, exact.wkv, atol=1e-6)
    np.testing.assert_allclose(state.att_shift, exact.att_shift, atol=1e-6)
    text = jnp.asarray([tiny.tokenizer.encode("say it")], jnp.int32)
    logits, _ = tiny.model.apply({"params": tiny.params}, text, surgery.broadcast(state, 1))
    assert jnp.isfinite(logits).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--prompt-file", "nothing.txt"], "nothing.txt"),
        (["--rank", "3", "--keep-shifts"], "exclude each other"),
        (["--tune.learning_rate", "0"], "must be a number above 0"),
        (["--tune.learning_rate", "nan"], "nan must be finite"),
        (["--tune.learning_rate", "inf"], "inf must be finite"),
        (["--output", "no/such/folder/state.st"], "output: no folder"),
        (["--output", "."], "is a folder; give the name of a file"),
        (["--rank", "77"], "rank 77 is not in 1..4"),
    ],
)
def test_wrong_settings_are_told_in_one_line(words: list[str], extra: list[str], message: str, capsys):
    assert distill.main([*words, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("out", [".", "s" * 250])
def test_a_file_that_cannot_be_written_is_told_before_the_work(words: list[str], out: str, monkeypatch, capsys):
    monkeypatch.setattr(work, "compile_prompt", lambda *_: pytest.fail("the prompt was compiled"))
    assert distill.main([*words, "--output", out]) == 2
    assert capsys.readouterr().err.startswith("error: output: ")


def test_two_texts_are_too_few(words: list[str], tmp_path: Path, capsys):
    data = tmp_path / "two.jsonl"
    data.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert distill.main([*words, "--data.train", str(data)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: data.train: {data} has fewer than 3 different texts")
    assert "--data.validation" not in error


def test_texts_that_are_cut_or_not_used_are_told(words: list[str], tmp_path: Path, tiny: LanguageModel, capsys):
    data = tmp_path / "long.jsonl"
    data.write_text("".join(f'{{"text": "text {i} {"x" * i}"}}\n' for i in range(30)))
    assert distill.main([*words, "--data.train", str(data), "--tune.steps", "0"]) == 0
    told = capsys.readouterr()
    assert f"12 of 30 texts of {data} are used (texts 6)\n" in told.out
    assert "texts are cut to their first 8 tokens (the longest has " in told.err
    assert distill.main([*words, "--data.train", str(data), "--tune.steps", "0", "--length", "99"]) == 0
    assert "are cut" not in capsys.readouterr().err


def test_a_fit_that_makes_the_state_worse_gives_a_warning(words: list[str], capsys):
    assert distill.main([*words, "--tune.learning_rate", "1e6", "--tune.steps", "2"]) == 0
    assert "warning: the fit made the state worse (without token-shift states): lower" in capsys.readouterr().err


def test_another_process_that_writes_the_file_is_named(words: list[str], tmp_path: Path, capsys):
    with lock(tmp_path / "state.safetensors"):
        assert distill.main(words) == 2
    error = capsys.readouterr().err
    assert f"state.safetensors is being written by process {os.getpid()} on " in error
    assert "choose another --output" in error
    assert {path.name for path in tmp_path.iterdir()} == {"system.txt"}


def test_the_home_folder_is_expanded_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert distill.settings(["--prompt-file", "p", "--output", "~/s.st"]).output == "/home/me/s.st"


def test_the_command_names_weights_and_tokenizer_as_generate_takes_them(tiny: LanguageModel, tiny_checkpoint: Path):
    assert work.command(tiny, "s.st").split()[2:] == [
        "--model.checkpoint", str(tiny_checkpoint), "--state", "s.st", "--prompt", "TEXT"
    ]  # fmt: skip
    spaced = tiny.replace(path=Path("my model.pth"), tokenizer_name="byte")
    begin = "rwkv7 generate --model.checkpoint 'my model.pth' --state s.st"
    assert work.command(spaced, "s.st") == f"{begin} --model.tokenizer byte --prompt TEXT"


def test_an_empty_prompt_is_refused(words: list[str], tmp_path: Path, capsys):
    (tmp_path / "system.txt").write_text("")
    assert distill.main(words) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def preferences(path: Path, count: int = 12) -> str:
    lines = (f'{{"prompt": "say {i}:", "chosen": " yes {i}", "rejected": " no"}}\n' for i in range(count))
    path.write_text("".join(lines))
    return str(path)


def rows(output: str) -> dict[str, list[float]]:
    lines = [line.split() for line in output.splitlines() if line.startswith("  ")]
    return {" ".join(line[:-2]): [float(line[-2]), float(line[-1])] for line in lines}


@pytest.fixture
def texts(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    found = ["--model.checkpoint", str(tiny_checkpoint), "--system.compilation_cache", "no", "--batch-size", "4"]
    return [*found, "--tune.steps", "12", "--output", str(tmp_path / "state.safetensors")]


def test_a_larger_model_is_compiled_into_a_state(texts: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys):
    """The larger model is the same one, from another state: what a state can reach."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f'{{"prompt": "say {i}:", "completion": " {i}{i}"}}\n' for i in range(12)))
    pairs = preferences(tmp_path / "pref.jsonl")
    teacher_state = str(tmp_path / "teacher.safetensors")
    assert distill.main([*texts, "--preferences", pairs, "--output", teacher_state, "--tune.learning_rate", "1"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["loss"][1] < found["loss"][0] == pytest.approx(np.log(2), abs=1e-3)
    assert found["share preferred"] == [0.0, 1.0]
    teacher = ["--teacher.checkpoint", str(tiny_checkpoint), "--teacher.state", teacher_state]
    assert distill.main([*texts, *teacher, "--data.train", str(data), "--tune.hard", "0.1"]) == 0
    found = rows(capsys.readouterr().out)
    before, after = found["divergence, nats per token"]
    assert after < 0.7 * before
    loaded = load_state(tmp_path / "state.safetensors")
    assert loaded.metadata["method"] == "distill"
    assert '"records": 12' in loaded.metadata["metrics"]
    again = [*texts, *teacher, "--data.train", str(data), "--state", str(tmp_path / "state.safetensors")]
    assert distill.main([*again, "--tune.steps", "0", "--output", str(tmp_path / "second.safetensors")]) == 0
    assert rows(capsys.readouterr().out)["divergence, nats per token"] == pytest.approx([after, after], abs=1e-3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "nothing to compile: give --prompt_file FILE"),
        (["--preferences", "p.jsonl", "--teacher.checkpoint", "t.pth"], "teacher.checkpoint and preferences exclude"),
        (["--teacher.checkpoint", "t.pth"], "teacher.checkpoint needs --data.train FILE"),
        (["--teacher.checkpoint", "http://x/v1", "--data.train", "d.jsonl"], "teacher.model: name the model"),
        (["--preferences", "p.jsonl", "--tune.beta", "0"], "tune.beta above 0"),
        (["--preferences", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["--prompt-file", "p.txt", "--state", "s.st"], "state goes with a teacher or preferences"),
    ],
)
def test_what_is_compiled_is_said_once(texts: list[str], extra: list[str], message: str, capsys):
    assert distill.main([*texts, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "chosen": "b"}', 'a preference is {"prompt", "chosen", "rejected"}, three strings'),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "chosen and rejected are the same text"),
    ],
)
def test_lines_that_are_no_preferences_are_told(texts: list[str], line: str, message: str, tmp_path: Path, capsys):
    data = tmp_path / "pref.jsonl"
    data.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{line}\n')
    assert distill.main([*texts, "--preferences", str(data)]) == 2
    error = capsys.readouterr().err
    assert f"{data}:2: {message}" in error
    assert error.count("\n") == 1
