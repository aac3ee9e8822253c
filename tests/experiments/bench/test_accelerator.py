"""Whole models in the check of a GPU, as far as they run without one."""

import json
from pathlib import Path

import jax
import pytest

from experiments.bench import accelerator
from experiments.commands.work import bench
from experiments.config.bench import BenchGpu
from pallas_kernels.bench import gpu
from rwkv7_jax import RWKV7Config

WORK = accelerator.Work("tiny", RWKV7Config(64, 2, 64, dtype="bfloat16", remat="block"), (3,), 2, 16, 2)


def test_decoding_and_a_tuning_step_have_a_speed():
    decode, tuning = accelerator.rows(WORK)
    assert decode["tokens_per_second"] == pytest.approx(3 / decode["seconds"])
    assert tuning["tokens_per_second"] == pytest.approx(32 / tuning["seconds"])
    assert tuning["mfu"] is None, "the peak of a CPU is not known"


def test_logits_and_losses_that_are_not_finite_have_none(monkeypatch: pytest.MonkeyPatch):
    drawn = jax.tree.map(lambda x: x * float("nan"), accelerator.random_params(WORK.config))
    monkeypatch.setattr(accelerator, "random_params", lambda config: drawn)
    for row in accelerator.rows(WORK):
        assert row["failed"].startswith("wrong: ")
        assert "seconds" not in row


def test_the_published_speeds_are_of_a_size_that_is_measured():
    works = [work for part in accelerator.sections(False) for work in part.args]  # type: ignore[attr-defined]
    measured = {(work.size, count) for work in works for count in work.streams}
    assert {case[:2] for case in accelerator.PUBLISHED} <= measured


def test_the_command_rehearses_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "sections", lambda sizes, others, rate, more: more)
    path = tmp_path / "check.json"
    assert bench.run(BenchGpu(tiny=True, json=str(path))) == 0
    report = json.loads(path.read_text())
    assert report["complete"]
    found = [(row["name"], row["task"], row.get("sequences")) for row in report["rows"]]
    assert found == [("tiny", "decode", 1), ("tiny", "decode", 3), ("tiny", "state-tuning step", 2)]
    assert all(row["tokens_per_second"] > 0 for row in report["rows"])
