"""The script for a machine with a GPU, as far as it can run without one."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS
from pallas_kernels.bench import gpu, peers
from pallas_kernels.bench.shapes import Shape, make_example

SHAPE = Shape(2, 20, 3, 16, 16)


@pytest.fixture
def data(rng):
    example = make_example(rng, SHAPE)
    inputs = {n: jnp.asarray(z, jnp.float32 if n == "s0" else jnp.bfloat16) for n, z in example.inputs.items()}
    return inputs, jnp.asarray(example.dy, jnp.bfloat16), jnp.asarray(example.ds)


def test_right_results_are_timed_and_wrong_ones_are_not(data, monkeypatch):
    monkeypatch.setattr(gpu, "TASKS", ("forward", "gradient of s0"))
    wanted = gpu.expected(*data)
    right = peers.of_jax("right", IMPLEMENTATIONS["chunked"])
    wrong = peers.of_jax("wrong", lambda *x: jax.tree.map(lambda z: 1.1 * z, IMPLEMENTATIONS["chunked"](*x)))
    rows = list(gpu.measure(SHAPE, right, data, wanted, 1e9))
    assert [row["task"] for row in rows] == list(gpu.TASKS)
    assert all(row["error"] < 1e-2 and row["seconds"] > 0 and row["of_bandwidth"] > 0 for row in rows)
    for row in gpu.measure(SHAPE, wrong, data, wanted, 1e9):
        assert "seconds" not in row
        assert row["failed"].startswith("wrong: relative error ")


def test_error_is_of_the_worst_array():
    x = np.ones((2, 5, 3, 4)), np.ones((2, 3, 4, 4))
    y = np.ones((1, 5, 2, 4)), 2 * np.ones((1, 2, 4, 4))
    assert gpu.largest_error(x, y) == pytest.approx(0.5)
    assert np.isnan(gpu.largest_error([*x, np.full(2, np.nan)], [*y, np.ones(2)]))


def test_every_tuning_can_be_launched():
    found = dict(gpu.tunings())
    assert set(found) >= {name for name in gpu.DEFAULTS if name.startswith("gpu")}
    for tuning in found.values():
        assert tuning.checkpoint % tuning.chunk == 0
        assert (tuning.checkpoint // tuning.chunk).bit_count() == 1


def test_peers_that_are_not_installed_are_named():
    found, absent = peers.available()
    for library in ("fla", "rwkv_ops", "ejkernel"):
        if importlib.util.find_spec(library) is None:
            assert f"{library}: not installed" in absent
    assert len(found) + len(absent) > 0


def test_a_rehearsal_writes_one_report(tmp_path, monkeypatch, capsys):
    """On a CPU, kernels interpreted: all that is right is timed; the other sections come before the tunings."""
    monkeypatch.setattr(gpu, "best_seconds", lambda start, wait: (start(), wait(), 1.0)[2])
    monkeypatch.setattr(gpu, "TASKS", ("forward",))
    path = tmp_path / "check.json"
    assert gpu.main(["--tiny", "--json", str(path)], models=lambda tiny: [lambda: iter([{"name": tiny}])]) == 0
    report = json.loads(path.read_text())
    rows = report["rows"]
    assert report["rehearsal"]
    assert report["complete"]
    checked = [row for row in rows if "regime" in row]
    assert {(row["kernel"], row["dtype"]) for row in checked} == {
        ("gpu small", "bfloat16"), ("gpu sequential", "bfloat16"), ("gpu divided", "bfloat16"),
        ("gpu small", "float32"), ("gpu wide", "bfloat16"), ("gpu wide", "float32"), ("decode", "bfloat16"),
        ("decode", "float32"),
    }  # fmt: skip
    assert not any(row["wrong"] for row in checked)
    timed = [(row["name"], row["task"]) for row in rows if "seconds" in row]
    forms = [(f"gpu {name}", "forward") for name in ("default", "small", "sequential", "divided")]
    assert timed[:5] == [*forms, ("chunked", "forward")]
    assert timed[-2:] == [("decode gpu", "decode"), ("decode xla", "decode")]
    assert rows[-1] == {"name": True}
    assert "right" in capsys.readouterr().out


def test_no_gpu(capsys):
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == "error: no GPU: this process computes on cpu\n"
