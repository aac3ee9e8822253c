"""Pre-training: rows hold whole documents, a resumed run equals an uninterrupted one, the weights file loads."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest

from experiments.commands import pretrain as command
from experiments.config.schema import PretrainConfig
from experiments.data import packing
from experiments.training import pretraining
from rwkv7_jax import checkpoint

TINY = PretrainConfig(
    n_layer=2, n_embd=16, head_size=8, lora=4, gate_lora=4, steps=4, batch_size=2, length=96, warmup=1,
    validate_every=4, log_every=1, checkpoint_every=2, save_dtype="float32",
)  # fmt: skip


def test_rows_hold_whole_documents_from_their_first_token():
    batch = next(packing.Batches(TINY, 0))
    tokens, segment = batch["tokens"], batch["tokens_segment_ids"]
    assert tokens.shape == (2, 97)
    for row in range(2):
        last = np.flatnonzero(segment[row])[-1]
        ends = np.flatnonzero(np.diff(segment[row, : last + 1], append=-1))
        assert not tokens[row, ends].any()
        assert np.count_nonzero(tokens[row, : last + 1] == 0) == len(ends)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = pretraining.make_program(pretraining.make_model(TINY), TINY)
    monkeypatch.setattr(pretraining, "make_program", lambda *_: program)

    def run(name: str, stop: int | None) -> Path:
        config = dataclasses.replace(TINY, output=str(tmp_path / name))
        for row in pretraining.pretrain(config):
            if row["step"] == stop:
                return config.folder
        return config.folder

    whole = run("whole", None)
    assert not (run("cut", 3) / "model.safetensors").exists()
    again = run("cut", None)
    left, right = (checkpoint.load(folder / "model.safetensors").params for folder in (whole, again))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_wrong_key_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--config", "pretrain_student", "--step", "3"]) == 2
    assert capsys.readouterr().err == "error: unknown key 'step'; did you mean steps?\n"


def test_config_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--config", "quickstart"]) == 2
    error = capsys.readouterr().err
    assert "PretrainConfig" in error
    assert error.count("\n") == 1


def test_adam_decays_the_matrices_of_the_blocks_alone():
    params = {
        "emb": {"weight": np.ones((4, 3), np.float32)},
        "block_0": {"att": {"w1": np.ones((3, 2), np.float32), "x_r": np.ones(3, np.float32)}},
    }
    config = dataclasses.replace(TINY, optimizer="adam", warmup=0)
    optimizer = pretraining.make_optimizer(config)
    zero = jax.tree.map(np.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
    moved = jax.tree.map(lambda leaf: bool(np.any(leaf)), updates)
    assert moved == {"emb": {"weight": False}, "block_0": {"att": {"w1": True, "x_r": False}}}
    change = np.full((3, 2), -config.learning_rate * config.weight_decay)
    np.testing.assert_allclose(updates["block_0"]["att"]["w1"], change, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_run_may_end_in_its_warm_up(optimizer: Literal["muon", "adam"]):
    params = {"block_0": {"att": {"w1": np.ones((3, 2), np.float32)}}}
    grads, sizes = jax.tree.map(np.ones_like, params), {}
    for steps in (2, 100):
        short = pretraining.make_optimizer(dataclasses.replace(TINY, optimizer=optimizer, steps=steps, warmup=10))
        with jax.numpy_dtype_promotion("standard"):
            _, state = short.update(grads, short.init(params), params)
            updates, _ = short.update(grads, state, params)
        sizes[steps] = float(np.abs(updates["block_0"]["att"]["w1"]).sum())
    assert sizes[2] == sizes[100] > 0
