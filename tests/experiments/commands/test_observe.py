"""`rwkv7 observe`: trains, carries states there and back, measures; a mistake is one line."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.commands import generate, observe
from rwkv7_jax import State, load_state, save_state
from rwkv7_jax.language_model import LanguageModel
from state_tuning.observer import load_observer, state_map

WORDS = ("the", "lamp", "is", "green", "and", "stone", "grey", "while", "a", "leaf", "falls", "over", "old", "wall")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an observer of the tiny model was trained."""
    place, rng = tmp_path_factory.mktemp("observe"), np.random.default_rng(0)
    pairs = [{"prompt": " ".join(rng.choice(WORDS, 3)), "completion": " " + rng.choice(WORDS)} for _ in range(24)]
    (place / "text.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = ["--model.checkpoint", str(tiny_checkpoint), "--data.train", str(place / "text.jsonl")]
    words += ["--small.n_layer", "1", "--small.n_embd", "8", "--small.head_size", "4", "--small.lora", "2"]
    words += ["--small.gate_lora", "2", "--tune.steps", "3", "--tune.every", "8", "--maps.samples", "32"]
    words += ["--maps.iterations", "2", "--data.batch_size", "4", "--system.validate_records", "4"]
    words += ["--system.compilation_cache", "no", "--output", str(place / "run")]
    assert observe.main(words) == 0
    assert observe.main(["train", *words]) == 0, "a finished run ends at once"
    return place


def test_training_writes_a_model_and_an_observer(folder: Path, tiny: LanguageModel):
    small = LanguageModel.load(folder / "run" / "model.safetensors")
    assert small.config.n_layer == 1
    stored = load_observer(folder / "run" / "observer.safetensors", small=small, large=tiny)
    assert stored.every == 8
    assert json.loads(stored.metadata["config"])["tune"]["steps"] == 3
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "r2_mean" in rows[-1]


def a_state(lm: LanguageModel, path: Path, seed: int) -> State:
    zero = lm.zero_state()
    state = zero._replace(wkv=jnp.asarray(np.random.default_rng(seed).normal(size=zero.wkv.shape), jnp.float32))
    save_state(path, state, metadata={"base_model_hash": lm.weights_hash, "method": "standard", "task": "arc"})
    return state


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_state_is_carried_there_and_back(folder, tiny, tmp_path, capsys, direction):
    small = LanguageModel.load(folder / "run" / "model.safetensors")
    source, target = (small, tiny) if direction == "up" else (tiny, small)
    given, carried = tmp_path / "given.safetensors", tmp_path / "carried.safetensors"
    state = a_state(source, given, 1)
    words = ["carry", str(given), "--observer", str(folder / "run"), "--direction", direction]
    assert observe.main([*words, "--output", str(carried)]) == 0
    assert "rwkv7 tune --tune.init" in capsys.readouterr().out
    found = load_state(carried, config=target.config, base_model_hash=target.weights_hash)
    maps = getattr(load_observer(folder / "run" / "observer.safetensors").observer, direction)
    np.testing.assert_allclose(found.state.wkv, state_map.transfer(maps, state, target.config).wkv, rtol=1e-5)
    assert not found.state.att_shift.any()
    assert found.metadata["method"] == "carried"
    assert found.metadata["task"] == "arc"
    other = "down" if direction == "up" else "up"
    assert observe.main([*words[:-1], other, "--output", str(tmp_path / "no.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "it belongs to the other one: change --direction" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "no.safetensors").exists()


def test_measuring_reports_states_drafts_and_warm_starts(folder, tiny_checkpoint, tmp_path, capsys):
    words = ["measure", "--observer", str(folder / "run"), "--model.checkpoint", str(tiny_checkpoint)]
    words += ["--data.train", str(folder / "text.jsonl"), "--data.batch_size", "4", "--records", "4"]
    words += ["--speculation.tokens", "2", "--speculation.prompts", "3", "--speculation.max_new_tokens", "6"]
    words += ["--warm.steps", "3", "--warm.every", "2", "--warm.rates", "0.1,1", "--warm.records", "4"]
    assert observe.main([*words, "--json", str(tmp_path / "found.json"), "--compilation_cache", "no"]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["reports"]) == {"plain", "corrected, gain 0.5"}
    assert len(found["reports"]["plain"]["r2"]) == 2
    greedy, sampled = found["speculation"]
    assert greedy["choice"] == "greedy"
    assert greedy["same"] == "2 of 2"
    assert greedy["tokens_a_pass"] >= 1
    assert sampled["choice"] == "temperature 1"
    warm = found["warm"]["jsonl"]
    assert warm["steps"] == [0, 2, 3]
    assert {len(curve) for start in ("zero", "carried") for curve in warm[start].values()} == {3}
    assert warm["zero"]["0.1"][0] == warm["zero"]["1"][0] != warm["carried"]["1"][0]
    assert "R^2 by layer" in out
    assert "best from carried" in out


def test_the_observers_model_is_a_draft(folder, tiny_checkpoint, capsys):
    words = ["--model.checkpoint", str(tiny_checkpoint), "--prompt", "the lamp", "--temperature", "0"]
    words += ["--max_new_tokens", "9", "--system.compilation_cache", "no"]
    assert generate.main([*words, "--quiet"]) == 0
    plain = capsys.readouterr().out
    draft = ["--draft.checkpoint", str(folder / "run" / "model.safetensors"), "--draft.tokens", "3"]
    assert generate.main([*words, *draft]) == 0
    said = capsys.readouterr()
    assert said.out == plain
    assert "draft: " in said.err
    assert "proposed tokens kept" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["carry", "x.safetensors", "--output", "y.safetensors"], "--observer"),
        (["carry", "x.safetensors", "--observer", "nowhere", "--output", "y.safetensors"], "no such observer"),
        (["--tune.steps", "0"], "must be at least 1"),
        (["--output", "z", "--model.checkpoint", "TINY"], "nothing to observe on"),
        (["measure", "--observer", "nowhere", "--model.checkpoint", "TINY"], "nowhere"),
        (["trian", "x"], "rwkv7 observe: no 'trian'; did you mean train?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, message, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(tiny_checkpoint) if word == "TINY" else word for word in words]
    assert observe.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draft.state", "x.safetensors"], "draft.state needs draft.checkpoint"),
        (["--draft.checkpoint", "nowhere.pth"], "draft.checkpoint: no file nowhere.pth"),
        (["--draft.checkpoint", "TINY", "--draft.tokens", "0"], "the number of tokens must lie in 1..64"),
        (["--draft.checkpoint", "pocket/student"], "its vocabulary has 1024 tokens, that of the model 256"),
    ],
)
def test_a_mistake_about_the_draft_is_one_line(words, message, tiny_checkpoint, capsys):
    words = [str(tiny_checkpoint) if word == "TINY" else word for word in words]
    common = ["--model.checkpoint", str(tiny_checkpoint), "--quiet", "--system.compilation_cache", "no"]
    assert generate.main([*common, *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
