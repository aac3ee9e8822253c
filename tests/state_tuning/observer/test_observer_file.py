"""An observer's file: what was saved comes back bit for bit, and a wrong file is one line."""

import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax.checkpoint import CheckpointError, safetensors
from rwkv7_jax.checkpoint.state_hash import state_hash
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.observer import load_observer, save_observer
from state_tuning.observer.observe import Observer
from state_tuning.observer.state_map import Maps
from tests.helpers import CONFIG, MODEL, weights

SMALL, LARGE = "a" * 64, "b" * 64


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def an_observer():
    """From 2 layers with 2 heads of 8 to 3 layers with 2 heads of 12, and back; one way with every option."""
    up = Maps(
        np.asarray([[0, 1], [0, 1], [1, 0]], np.int32), array(0, 3, 2, 8, 12, 8), array(1, 3, 2, 8, 12, 8),
        array(2, 3, 2, 12, 12), array(3, 2, 2),
    )  # fmt: skip
    return Observer(up, Maps(np.asarray([0, 2], np.int32), array(4, 2, 2, 2, 8, 12), array(5, 2, 2, 2, 8, 12)))


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "observer.safetensors"
    save_observer(found, an_observer(), SMALL, LARGE, every=8, details={"config": {"steps": 3}, "note": "text"})
    return found


def test_what_was_saved_comes_back_bit_for_bit(path):
    stored = load_observer(path)
    for maps, wanted in zip(stored.observer, an_observer(), strict=True):
        for a, b in zip(maps, wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
    assert stored.every == 8
    assert stored.metadata["small_hash"] == SMALL
    assert stored.metadata["config"] == '{"steps": 3}'
    assert stored.metadata["note"] == "text"


def lm(digest):
    return LanguageModel(MODEL, weights(), ByteTokenizer(), weights_hash=digest)


def test_both_models_are_checked(path):
    assert load_observer(path, small=lm(SMALL)).every == 8
    with pytest.raises(CheckpointError, match=f"made for the small model {SMALL[:16]}, not for cccc"):
        load_observer(path, small=lm("c" * 64))
    with pytest.raises(CheckpointError, match="made for 3 layers with 2 heads of 12, the large model has 2"):
        load_observer(path, large=lm(LARGE))
    assert CONFIG.n_layer == 2


def changed(path, metadata=None, drop=(), **tensors):
    """The file with other tensors and fields, its hash right."""
    flat, fields = safetensors.read_tensors(path)
    flat = {name: np.array(value) for name, value in flat.items() if name not in drop}
    flat |= {name.replace("_", ".", 1): value for name, value in tensors.items()}
    safetensors.write(path, flat, fields | {"state_hash": state_hash(flat)} | (metadata or {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"format": "other"}}, "not an observer's file; `rwkv7 observe` writes them"),
        ({"metadata": {"version": "9"}}, "version 9 of observers' files; 1 is read"),
        ({"metadata": {"state_hash": "0"}}, "does not match the hash"),
        ({"metadata": {"every": "x"}}, "every is 'x'; a number from 1 on is needed"),
        ({"drop": ["up.w"]}, "tensor up.w is missing"),
        ({"up_other": np.zeros(1, np.float32)}, "tensor 'up.other', which no observer has"),
        ({"up_u": np.zeros((3, 2), np.float32)}, "up.u is float32 of shape"),
        ({"up_u": np.full((3, 2, 8, 12, 8), np.nan, np.float32)}, "up.u has values that are not finite"),
        ({"up_source": np.asarray([0, 1], np.int32)}, "the shapes of up.u, w, source and bias do not fit"),
        ({"up_source": np.asarray([[0, 1], [0, 1], [1, 7]], np.int32)}, "the maps up do not read"),
        ({"down_u": np.zeros((2, 2, 2, 8, 11), np.float32)}, "the maps down do not read"),
        ({"up_scale": np.ones((2, 3), np.float32)}, "the maps up do not read"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_path(path, change, message):
    changed(path, **change)
    with pytest.raises(CheckpointError) as error:
        load_observer(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_numbers_that_are_not_finite(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such observer"):
        load_observer(tmp_path / "nowhere")
    one = an_observer()
    broken = one._replace(down=one.down._replace(u=one.down.u.at[0, 0, 0, 0, 0].set(jnp.inf)))
    with pytest.raises(CheckpointError, match=r"down\.u has values that are not finite"):
        save_observer(tmp_path / "new.safetensors", broken, SMALL, LARGE, every=8)
    assert not list(tmp_path.iterdir())
