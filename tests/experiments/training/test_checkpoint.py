"""Checkpoints for resuming: exact, never silently wrong, never another run's."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.config.overrides import UsageError
from experiments.training import checkpoint
from experiments.training.checkpoint import files
from state_tuning.core import train


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
    with pytest.raises(UsageError, match=r"other settings, data or weights: choose another --output, .*--overwrite$"):
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
    manifest = (place / "MANIFEST.json").read_text()
    for damaged in ("[]", "1.5", "null", "[" * 100_000):
        (place / "MANIFEST.json").write_text(damaged)
        assert checkpoint.damage(place) == "MANIFEST.json is missing or damaged"
    (place / "MANIFEST.json").write_text(json.dumps({**json.loads(manifest), "\x1b[2J" + "x" * 5000: ""}))
    assert checkpoint.damage(place).isprintable()
    assert len(checkpoint.damage(place)) < 300
    (place / "MANIFEST.json").write_text(manifest)
    (place / "meta.json").unlink()
    assert checkpoint.damage(place) == "meta.json is missing"
    found = checkpoint.restore(tmp_path, tree_of(0), "me")
    assert (found.tree, found.step) == (None, 0)
    assert found.warnings[-1].endswith("starting anew")


def test_no_random_flip_or_truncation_is_silent(tmp_path):
    """1,000 bit flips and truncations (a tenth unless RWKV7_TEST_FLIPS says so), each found, whatever file it is in."""
    count = int(os.environ.get("RWKV7_TEST_FLIPS", "100"))
    checkpoint.save(tmp_path, 10, tree_of(10), {"identity": "me", "data": {"next_index": 3}})
    place, rng, silent = tmp_path / "step_00000010", np.random.default_rng(0), []
    found = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.stat().st_size}
    for number in range(count):
        path = list(found)[rng.integers(len(found))]
        bad = bytearray(found[path])
        at, bit = int(rng.integers(len(bad))), 1 << int(rng.integers(8))
        if number % 5 == 0:
            del bad[at:]
        else:
            bad[at] ^= bit
        path.write_bytes(bad)
        if checkpoint.damage(place) is None:
            silent.append((path.name, at, bit))
        path.write_bytes(found[path])
    assert checkpoint.damage(place) is None
    assert not silent
    print(f"{count} changes in {len(found)} files, {len(silent)} silent")


def test_the_step_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is saved is what was handed over, though its buffers are donated to later steps at once."""
    written, hashes = threading.Event(), files.file_hashes
    monkeypatch.setattr(files, "file_hashes", lambda path: [written.wait(), hashes(path)][1])
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.5 - 1.0, tree), donate_argnums=0)
    tree = step({str(i): jax.random.normal(jax.random.key(i), (300, 300)) for i in range(4)})
    wanted = {name: np.array(leaf, copy=True) for name, leaf in tree.items()}
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, tree, {"identity": "me"})
        for _ in range(20):
            tree = step(tree)
        assert checkpoint.steps(tmp_path) == []
        assert checkpoint.restore(tmp_path, tree, "me") is None
        written.set()
        writer.wait()
        found = checkpoint.restore(tmp_path, tree, "me")
    assert all(np.array_equal(found.tree[name], leaf) for name, leaf in wanted.items())


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, tree_of(1), {"identity": "me"})
        writer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(files, "file_hashes", full)
            writer.save(2, tree_of(2), {"identity": "me"})
            with pytest.raises(OSError, match="no space left"):
                writer.save(3, tree_of(3), {"identity": "me"})
        writer.save(4, tree_of(4), {"identity": "me"})
    assert checkpoint.steps(tmp_path) == [1, 4]


def test_a_full_disk_is_one_line_without_a_traceback(tmp_path):
    """A limit on the size of files stands for the full disk: Orbax's own writes fail, in threads of their own."""
    code = (
        "import pathlib, resource, signal, sys, jax.numpy as jnp\n"
        "from experiments.training import checkpoint\n"
        "from rwkv7_jax.terminal import exit_status\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder, tree = pathlib.Path(sys.argv[1]), {'a': jnp.arange(90_000.0), 'b': jnp.ones((300, 300))}\n"
        "def body():\n"
        "    with checkpoint.Writer(folder) as writer:\n"
        "        writer.save(1, tree, {'identity': 'x'})\n"
        "        writer.wait()\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "        writer.save(2, tree, {'identity': 'x'})\n"
        "sys.exit(exit_status(body))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    told = f"error: {tmp_path}/step_00000002: the checkpoint is not saved (File too large): make room, or choose"
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
    assert checkpoint.steps(tmp_path) == [1]
    assert checkpoint.damage(tmp_path / "step_00000001") is None


def test_a_folder_that_goes_away_is_one_line_and_the_next_save_works(tmp_path, monkeypatch, capfd):
    with checkpoint.Writer(tmp_path / "run") as writer:
        with monkeypatch.context() as patch:
            hashes = files.file_hashes
            patch.setattr(files, "file_hashes", lambda path: [shutil.rmtree(path), hashes(path)][1])
            writer.save(1, tree_of(1), {"identity": "me"})
            with pytest.raises(
                OSError, match=r"step_00000001: the checkpoint is not saved \(No such file .*same command"
            ):
                writer.wait()
        writer.save(2, tree_of(2), {"identity": "me"})
    assert checkpoint.steps(tmp_path / "run") == [2]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("years", [-3, 3])
def test_a_wall_clock_that_is_set_while_it_saves_changes_nothing(years, tmp_path, monkeypatch):
    now, calls = time.time, []

    def wall():
        calls.append(None)
        return now() + years * 31_536_000 * (len(calls) > 3)

    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, tree_of(1), {"identity": "me"})
        writer.wait()
        monkeypatch.setattr(time, "time", wall)
        writer.save(2, tree_of(2), {"identity": "me"})
        writer.wait()
    assert len(calls) > 3
    assert checkpoint.steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 1)])
def test_restored_onto_another_mesh(shape, tmp_path):
    def spread(shape):
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices)
        return {"w": NamedSharding(mesh, PartitionSpec("data", "tensor")), "b": NamedSharding(mesh, PartitionSpec())}

    tree = {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(3)}
    checkpoint.save(tmp_path, 1, jax.device_put(tree, spread((4, 2))), {"identity": "me"})
    template = jax.device_put(jax.tree.map(jnp.zeros_like, tree), spread(shape))
    found = checkpoint.restore(tmp_path, checkpoint.abstract(template), "me")
    for name, leaf in found.tree.items():
        np.testing.assert_array_equal(leaf, tree[name])
        assert leaf.sharding == template[name].sharding


def test_newest_best_and_anchor_are_kept(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0), (5, 4.0), (6, 5.0)):
        place = tmp_path / f"step_{step:08d}"
        place.mkdir()
        (place / "meta.json").write_text(json.dumps({"metrics": {"loss": loss}, "anchor": step == 3}))
    (tmp_path / "step_00000001" / "meta.json").write_text("{")
    files.prune(tmp_path, checkpoint.Keep(newest=2, best=2, metric="loss"))
    assert checkpoint.steps(tmp_path) == [2, 3, 4, 5, 6]
    files.prune(tmp_path, checkpoint.Keep(newest=2, best=1, metric="nothing"))
    assert checkpoint.steps(tmp_path) == [2, 3, 5, 6]
    files.discard_after(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [2, 3]


def test_a_file_system_that_cannot_rename_folders_is_told_at_the_first_save(tmp_path, monkeypatch):
    files.check_renames(tmp_path)
    assert not list(tmp_path.iterdir())

    def refuse(self, target):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(OSError, match=r"cannot be renamed \(Too many open files\); a bucket needs gcsfuse "):
        checkpoint.save(tmp_path / "run", 1, {"a": jnp.zeros(2)}, {"identity": "me"})
