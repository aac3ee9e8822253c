"""Checkpoints for resuming: exact, never silently wrong, never another run's."""

import jax
import numpy as np
import optax
import pytest

from experiments import checkpoint
from experiments.overrides import UsageError
from state_tuning import train


def tree_of(step):
    """A tuning state like the real one, with values of its own for each step."""
    optimizer = optax.adam(1e-2)
    with jax.numpy_dtype_promotion("standard"):
        tuned = train.init(optimizer, {"wkv": jax.random.normal(jax.random.key(step), (2, 3, 4, 4)), "hole": None})
    return tuned


def test_round_trip_is_exact_and_two_are_kept(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, tree_of(step), {"identity": "me", "data": {"next_index": step}})
    assert checkpoint.steps(tmp_path) == [20, 30]
    found = checkpoint.restore(tmp_path, tree_of(0), "me")
    assert (found.step, found.meta["data"], found.warnings) == (30, {"next_index": 30}, [])
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), found.tree, tree_of(30))
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(found.tree) == jax.tree.structure(tree_of(30))


def test_nothing_to_restore(tmp_path):
    assert checkpoint.restore(tmp_path / "none", tree_of(0), "me") is None
    (tmp_path / ".part_00000010").mkdir()
    assert checkpoint.restore(tmp_path, tree_of(0), "me") is None


def test_another_run_is_refused_in_one_line(tmp_path):
    checkpoint.save(tmp_path, 10, tree_of(10), {"identity": "me"})
    with pytest.raises(
        UsageError, match=r"other settings, data or weights: choose another --output-dir, .*--overwrite$"
    ):
        checkpoint.restore(tmp_path, tree_of(0), "you")


def test_a_flipped_bit_anywhere_falls_back_by_name(tmp_path):
    rng = np.random.default_rng()
    for step in (10, 20):
        checkpoint.save(tmp_path, step, tree_of(step), {"identity": "me"})
    newest = tmp_path / "step_00000020"
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 3
    for path in files:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        found = checkpoint.restore(tmp_path, tree_of(0), "me")
        assert found.step == 10, path
        np.testing.assert_array_equal(found.tree.trainable["wkv"], tree_of(10).trainable["wkv"])
        assert len(found.warnings) == 1
        assert str(newest) in found.warnings[0]
        assert path.name in found.warnings[0] or path.name == checkpoint.MANIFEST
        path.write_bytes(good)
    assert checkpoint.restore(tmp_path, tree_of(0), "me").step == 20


def test_a_missing_and_an_extra_file_are_damage(tmp_path):
    checkpoint.save(tmp_path, 10, tree_of(10), {"identity": "me"})
    place = tmp_path / "step_00000010"
    (place / "extra").write_text("x")
    assert checkpoint.damage(place) == "extra differs from its SHA-256"
    (place / "extra").unlink()
    assert checkpoint.damage(place) is None
    (place / "meta.json").unlink()
    assert checkpoint.damage(place) == "meta.json is missing"
    found = checkpoint.restore(tmp_path, tree_of(0), "me")
    assert (found.tree, found.step) == (None, 0)
    assert found.warnings[-1].endswith("starting anew")
