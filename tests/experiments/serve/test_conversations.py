"""Conversations on the disk: whole, checked, bounded."""

import errno

import jax
import numpy as np
import pytest

from experiments.serve import conversations
from experiments.serve.conversations import Conversation, Conversations, Record
from experiments.serve.errors import ApiError
from experiments.serve.state_files import Model
from rwkv7_jax import RWKV7Config, zero_state

CONFIG = RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4)
MODEL = Model(CONFIG, "a" * 64)


def conversation(seed: int = 0) -> Conversation:
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), zero_state(CONFIG, None))
    return Conversation(state, Record("m:a", "name a", 10 + seed, 1))


def held(folder, limit: int = 100) -> Conversations:
    return Conversations(folder, MODEL, limit, "session")


def test_a_conversation_is_read_as_it_was_written(tmp_path):
    """Bit for bit, by another object too, as after a restart."""
    held(tmp_path).write("one", conversation(3))
    found = held(tmp_path).read("one")
    assert found is not None
    assert found.record == conversation(3).record
    for ours, theirs in zip(jax.tree.leaves(conversation(3).state), jax.tree.leaves(found.state), strict=True):
        assert np.array_equal(ours, theirs)
    assert held(tmp_path).read("two") is None


def test_each_changed_byte_is_noticed(tmp_path):
    """Of the numbers, of their hash and of the record."""
    store = held(tmp_path)
    store.write("one", conversation())
    path = tmp_path / "one.safetensors"
    whole = path.read_bytes()
    places = np.random.default_rng(0).choice(len(whole), 60, replace=False)
    unnoticed = []
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        found, refused = None, None
        try:
            found = store.read("one")
        except ApiError as error:
            refused = error
        if refused is not None:
            assert (refused.status, str(tmp_path) in str(refused)) == (409, False)
            continue
        assert found is not None
        same = [np.array_equal(a, b) for a, b in zip(found.state, conversation().state, strict=True)]
        unnoticed += [place] if not (all(same) and found.record == conversation().record) else []
    assert unnoticed == []
    path.write_bytes(whole)
    assert store.read("one") is not None


def test_a_conversation_with_another_checkpoint_is_refused(tmp_path):
    held(tmp_path).write("one", conversation())
    other = Conversations(tmp_path, Model(CONFIG, "b" * 64), 10, "session")
    with pytest.raises(ApiError, match="another checkpoint"):
        other.read("one")


def test_the_oldest_go_beyond_the_limit_and_a_restart_knows_which(tmp_path):
    store = held(tmp_path, 3)
    for name in ("a", "b", "c", "a"):
        store.write(name, conversation())
    store.write("d", conversation())
    assert store.names() == ["c", "a", "d"]
    assert held(tmp_path, 3).names() == ["c", "a", "d"]
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c", "d"]


def test_one_request_at_a_time(tmp_path):
    store = held(tmp_path)
    store.begin("one")
    with pytest.raises(ApiError) as told:
        store.begin("one")
    assert (told.value.status, told.value.retry) == (409, 1)
    store.end("one")
    store.begin("one")


def test_a_full_disk_leaves_what_was_kept(tmp_path, monkeypatch):
    store = held(tmp_path)
    store.write("one", conversation(1))

    def full(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "one.safetensors"))

    monkeypatch.setattr(conversations, "save_state", full)
    with pytest.raises(ApiError, match="No space left") as told:
        store.write("one", conversation(2))
    assert told.value.status == 507
    assert str(tmp_path) not in str(told.value)
    found = store.read("one")
    assert found is not None
    assert found.record == conversation(1).record


def test_what_a_kill_leaves_half_written_is_removed(tmp_path):
    (tmp_path / ".one.safetensors.abcd1234.tmp").write_bytes(b"half")
    assert held(tmp_path).names() == []
    assert list(tmp_path.iterdir()) == []
