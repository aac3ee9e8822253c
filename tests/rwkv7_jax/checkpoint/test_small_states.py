"""Small state files: the nearest matrices of a rank, in few bits, and nothing else that can be read as them."""

import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import State
from rwkv7_jax.checkpoint import load_state, read_state_tensors, safetensors, save_state
from rwkv7_jax.checkpoint.small_states import pack, packed, unpack
from rwkv7_jax.checkpoint.state_hash import state_hash

NAME = "blocks.0.att.time_state"


def random_state(seed=0, *, shifts=False, size=8) -> State:
    rng = np.random.default_rng(seed)
    shift = rng.standard_normal((2, 3, 2 * size)).astype(np.float32) * shifts
    wkv = rng.standard_normal((3, 2, size, size)).astype(np.float32)
    return State(jnp.asarray(shift[0]), jnp.asarray(shift[1]), jnp.asarray(wkv))


def nearest(matrices: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrices of a rank, in float64."""
    left, singular, right = np.linalg.svd(np.asarray(matrices, np.float64))
    return (left[..., :rank] * singular[..., None, :rank]) @ right[..., :rank, :]


@pytest.mark.parametrize("rank", [None, 1, 4, 8])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 3e-2)])
def test_a_file_gives_the_nearest_matrices_of_its_rank(tmp_path, rank, dtype, bound):
    state = random_state(shifts=True)
    save_state(tmp_path / "s.safetensors", state, metadata={"method": "test"}, rank=rank, dtype=dtype)
    found, metadata = load_state(tmp_path / "s.safetensors")
    wanted = np.asarray(state.wkv, np.float64) if rank is None else nearest(state.wkv, rank)
    assert found.wkv.dtype == np.float32
    assert np.linalg.norm(found.wkv - wanted) <= bound * np.linalg.norm(wanted)
    np.testing.assert_array_equal(found.att_shift, state.att_shift)
    np.testing.assert_array_equal(found.ffn_shift, state.ffn_shift)
    assert metadata["method"] == "test"
    assert metadata["version"] == ("1" if (rank, dtype) == (None, "float32") else "2")


def test_files_are_as_small_as_they_say(tmp_path):
    state = random_state(size=64)
    save_state(tmp_path / "whole.safetensors", state, metadata={})
    save_state(tmp_path / "small.safetensors", state, metadata={}, rank=4, dtype="int8")
    numbers = sum(array.nbytes for array in read_state_tensors(tmp_path / "small.safetensors")[0].values())
    assert numbers == 3 * 2 * (2 * 64 * 4 + 2 * 4 * 4), "bytes of u and w, and float32 scales"
    assert (tmp_path / "small.safetensors").stat().st_size < (tmp_path / "whole.safetensors").stat().st_size / 15


def test_zero_states_and_large_values():
    tensors = unpack(packed({NAME: np.zeros((2, 4, 4), np.float32), "x": np.ones(3)}, 2, "int8"))
    np.testing.assert_array_equal(tensors[NAME], np.zeros((2, 4, 4)))
    np.testing.assert_array_equal(tensors["x"], np.ones(3))
    large = np.full((1, 4, 4), 1e30, np.float32)
    for dtype in ("bfloat16", "int8"):
        np.testing.assert_allclose(unpack(pack(NAME, large, None, dtype))[NAME], large, rtol=1e-2)


def test_what_cannot_be_stored_is_named(tmp_path, one_line_error):
    state = random_state()
    for rank in (0, 9):
        with one_line_error(f"rank {rank} is not in 1..8"):
            save_state(tmp_path / "s.safetensors", state, metadata={}, rank=rank)
    with one_line_error("has values that float16 cannot hold"):
        save_state(
            tmp_path / "s.safetensors", state._replace(wkv=state.wkv * 1e9), metadata={}, rank=None, dtype="float16"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.pop(f"{NAME}.w"), "u and w, or q, are needed"),
        (lambda t: t.pop(f"{NAME}.u_scale"), "integers need a float32 scale of shape [2, 1, 4]"),
        (lambda t: t.update({f"{NAME}.q": np.zeros((2, 8, 8), np.float32)}), "u and w, or q, are needed"),
        (lambda t: t.update({f"{NAME}.q_scale": np.zeros((2, 8, 1), np.float32)}), "u and w, or q, are needed"),
        (lambda t: t.update({NAME: np.zeros((2, 8, 8), np.float32)}), "is there whole and in parts"),
        (lambda t: t.update({f"{NAME}.u_scale": np.ones((2, 1, 3), np.float32)}), "integers need a float32 scale"),
        (lambda t: t.update({f"{NAME}.u_scale": np.ones((2, 1, 4))}), "integers need a float32 scale"),
        (lambda t: t.update({f"{NAME}.u_scale": np.full((2, 1, 4), np.inf, np.float32)}), "not finite"),
        (lambda t: t.update({f"{NAME}.u": np.zeros((2, 8, 4), np.int32)}), "is int32, expected integers with a scale"),
        (lambda t: t.update({f"{NAME}.u": np.zeros((2, 8, 4), np.float32)}), "is float32, expected integers with"),
        (lambda t: t.update({f"{NAME}.u": np.zeros((2, 0, 4), np.int8)}), "expected three axes"),
        (
            lambda t: t.update({f"{NAME}.w": t[f"{NAME}.w"][:1], f"{NAME}.w_scale": t[f"{NAME}.w_scale"][:1]}),
            "no product",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, one_line_error, change, error):
    path = tmp_path / "s.safetensors"
    save_state(path, random_state(), metadata={}, rank=4, dtype="int8")
    tensors, metadata = read_state_tensors(path)
    change(tensors)
    safetensors.write(path, tensors, metadata | {"state_hash": state_hash(tensors)})
    with one_line_error(error):
        load_state(path)
