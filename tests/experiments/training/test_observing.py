"""Training an observer: a resumed run equals an uninterrupted one, files hold what was learnt."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.config.observe import LearningConfig, MapsConfig, Observe, ObserveLoop, SmallConfig
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig
from experiments.training import observing
from experiments.training.observing import Pairing
from experiments.training.preemption import Interrupt
from rwkv7_jax import RWKV7Config
from rwkv7_jax.language_model import LanguageModel
from state_tuning import observer

WORDS = ("the", "lamp", "is", "green", "and", "stone", "grey", "while", "a", "leaf", "falls", "over", "old", "wall")


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """An observer of width 8 of the tiny model, on 24 texts."""
    folder, rng = tmp_path_factory.mktemp("observed"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(24)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Observe(
        model=ModelConfig(checkpoint=str(tiny_checkpoint), dtype="float32", wkv="scan"),
        small=SmallConfig(n_layer=2, n_embd=8, head_size=4, lora=2, gate_lora=2, dim_ffn=8),
        data=DataConfig(train=str(folder / "text.jsonl"), batch_size=4, max_length=32),
        maps=MapsConfig(samples=64, iterations=2),
        tune=LearningConfig(steps=4, warmup=1, every=8),
        system=ObserveLoop(validate_every=2, validate_records=2, log_every=1, checkpoint_every=2),
        output=str(folder / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairing(config: Observe, tiny: LanguageModel) -> tuple[Pairing, observing.Texts]:
    texts = observing.load_texts(tiny, config.data, config.system.validate_records, config.seed)
    small = observing.small_model(config.small, tiny, config.model, config.seed)
    given = (small, tiny, texts.examples, config.maps, config.tune.every, jax.random.key(0))
    return Pairing(small, tiny, observing.first_maps(*given)), texts


def run(config: Observe, pairing: tuple[Pairing, observing.Texts], stop: int | None = None):
    """The rows up to a step, and what was learnt."""
    config.folder.mkdir(parents=True, exist_ok=True)
    rows, generator = [], observing.learn(config, *pairing, Interrupt())
    while True:
        try:
            rows.append(next(generator))
        except StopIteration as end:
            return rows, end.value
        if rows[-1]["step"] == stop:
            generator.close()
            return rows, None


def test_a_resumed_run_equals_an_uninterrupted_one(config, pairing, tmp_path, monkeypatch):
    settings = observing.learning_config(config.tune)
    optimizer = observer.by_part(*map(observing.make_optimizer, observing.optimisation(config.tune)))
    models = pairing[0]
    step = observer.make_learn_step(models.small.model, models.large.model, models.start, optimizer, settings)
    monkeypatch.setattr(observer, "make_learn_step", lambda *_: step)
    whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
    cut = dataclasses.replace(config, output=str(tmp_path / "cut"))
    rows, wanted = run(whole, pairing)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"state_error", "kl"} <= set(rows[0])
    assert {"r2_mean", "r2_least", "kl_logits", "kl_state"} <= set(rows[1])
    assert "r2_mean" not in rows[2]
    run(cut, pairing, stop=3)
    again, found = run(cut, pairing)
    assert again[0]["step"] == 3
    for a, b in zip(jax.tree.leaves((found.small.params, found.observer)),
                    jax.tree.leaves((wanted.small.params, wanted.observer)), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), found.small.params, models.small.params)
    assert any(jax.tree.leaves(moved))
    assert json.loads((cut.folder / "config.json").read_text())["tune"]["every"] == 8
    small, saved = observing.save(cut, models, found, pairing[1])
    stored = observer.load_observer(cut.folder / observing.OBSERVER_FILE, small=small, large=models.large)
    for a, b in zip(jax.tree.leaves(stored.observer), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(a, b)
    back, every = observing.load_pairing(config.model, cut.folder, None)
    assert every == 8
    assert back.small.weights_hash == small.weights_hash == stored.metadata["small_hash"]
    with pytest.raises(UsageError, match="checkpoint"):
        run(dataclasses.replace(cut, seed=1), pairing)


def test_the_model_is_new_or_that_of_a_checkpoint(config, tiny, tiny_checkpoint):
    own = observing.small_model(config.small, tiny, config.model, 0)
    assert (own.config.n_layer, own.config.n_embd, own.config.dim_ffn, own.config.vocab_size) == (2, 8, 8, 256)
    assert own.weights_hash == ""
    read = observing.small_model(SmallConfig(checkpoint=str(tiny_checkpoint)), tiny, config.model, 0)
    assert read.weights_hash == tiny.weights_hash
    other = tiny.replace(model=type(tiny.model)(RWKV7Config(300, 2, 8, head_size=4)))
    with pytest.raises(UsageError, match="it has 256 tokens, the observed model 300"):
        observing.small_model(SmallConfig(checkpoint=str(tiny_checkpoint)), other, config.model, 0)
    with pytest.raises(UsageError, match=r"small\.checkpoint: no file"):
        observing.small_model(SmallConfig(checkpoint="nowhere.pth"), tiny, config.model, 0)


def test_maps_read_one_layer_or_all(config, pairing):
    (small, large, start), texts = pairing
    assert start.up.source.shape == (2, 2)
    maps = dataclasses.replace(config.maps, reads="paired", bias=False)
    given = (small, large, texts.examples, maps, config.tune.every, jax.random.key(0))
    found = observing.first_maps(*given)
    assert found.up.source.shape == (2,)
    assert found.up.bias is None
    with pytest.raises(UsageError, match=r"no text has more than 500 tokens.*smaller --tune\.every"):
        observing.first_maps(small, large, texts.examples, maps, 500, jax.random.key(0))


def test_nothing_to_read_is_told(config, tiny):
    with pytest.raises(UsageError, match="nothing to observe on"):
        observing.load_texts(tiny, DataConfig(), 2, 0)


def test_settings_out_of_range_are_told():
    for wrong in ({"steps": 0}, {"gain": -1.0}, {"state": 0.0, "kl": 0.0}, {"map_rate": float("inf")}):
        with pytest.raises(ValueError, match="must"):
            LearningConfig(**wrong)
    with pytest.raises(ValueError, match="must"):
        ObserveLoop(validate_records=1)
