"""Quantised weights in a file: they come back as they are, name their base, and damage is one line."""

import numpy as np
import pytest

from rwkv7_jax.checkpoint import CheckpointError, load, params_to_flat, quantised_file, safetensors, save
from rwkv7_jax.checkpoint.quantised_file import LINEAR, SCALES, StoredMatrix
from rwkv7_jax.quantisation import quantise, to_numpy
from tests.rwkv7_jax.checkpoint.conftest import SMALL


@pytest.fixture
def source(tmp_path, make_flat):
    """A checkpoint in float32, read."""
    safetensors.write(tmp_path / "float.safetensors", make_flat(dtype=np.float32))
    return load(tmp_path / "float.safetensors")


def written(source, path, bits=8):
    quantised_file.write(path, params_to_flat(source.params), bits, source.report.weights_hash)
    return path


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_written_is_read(source, tmp_path, bits, lazy):
    if bits == 4:
        source = source._replace(params=_wide(tmp_path))
    path = written(source, tmp_path / "small.safetensors", bits)
    read = load(path, lazy=lazy)
    assert read.report.weights_hash == source.report.weights_hash
    assert read.report.format == "safetensors (quantised)"
    before, after = params_to_flat(source.params), params_to_flat(read.params)
    assert before.keys() == after.keys()
    for name, array in before.items():
        expected = to_numpy(quantise(array, bits)) if LINEAR.fullmatch(name) else array
        np.testing.assert_array_equal(np.asarray(after[name]), expected)


def _wide(folder):
    """Weights whose rows have groups of 32."""
    import dataclasses

    from rwkv7_jax.checkpoint.names import expected_shapes

    config = dataclasses.replace(SMALL, n_embd=32, head_size=16, dim_ffn=64)
    rng = np.random.default_rng(1)
    flat = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in expected_shapes(config).items()}
    safetensors.write(folder / "wide.safetensors", flat)
    return load(folder / "wide.safetensors").params


def test_quantised_again_with_the_same_bits_changes_no_number(source, tmp_path):
    first = load(written(source, tmp_path / "1.safetensors"), lazy=True)
    second = written(first, tmp_path / "2.safetensors")
    assert second.read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_weights_that_are_not_finite_are_named(source, tmp_path):
    flat = {name: np.array(array) for name, array in params_to_flat(source.params).items()}
    flat["blocks.1.ffn.key.weight"][0, 0] = np.inf
    with pytest.raises(CheckpointError, match=r"^blocks.1.ffn.key.weight: NaN or infinite"):
        quantised_file.write(tmp_path / "x.safetensors", flat, 8, "0" * 64)
    assert not (tmp_path / "x.safetensors").exists()


def _hashed(tensors):
    return {"layout": "quantised", "weights_hash": "0" * 64, "numbers_hash": quantised_file.numbers_hash(tensors)}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("head.weight" + SCALES, None, "head.weight has no scales"),
        ("head.weight", lambda a: a.astype(np.int16), "head.weight has the unknown quantised type int16"),
        ("head.weight" + SCALES, lambda a: a[:3], "do not belong together"),
        ("head.weight" + SCALES, lambda a: np.repeat(a, 5, axis=1), "5 scales for rows of 12 numbers"),
        ("head.weight" + SCALES, lambda a: a.astype(np.float64), "do not belong together"),
        ("head.weight" + SCALES, lambda a: a * np.nan, "head.weight"),
        ("head.weight", lambda a: a.view(np.uint8), "head.weight"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_files_that_do_not_fit_together_are_one_line(source, tmp_path, one_line_error, name, change, words):
    path = written(source, tmp_path / "small.safetensors")
    tensors, _ = safetensors.read_tensors(path)
    changed = {key: np.array(array) for key, array in tensors.items()}
    if change is None:
        del changed[name]
    else:
        changed[name] = change(changed[name])
    safetensors.write(path, changed, _hashed(changed))
    if "nan" in str(change and changed[name].ravel()[0]):
        with pytest.warns(UserWarning, match="NaN or infinite numbers in head.weight"):
            load(path)
        return
    with one_line_error(str(path), words):
        load(path)


def test_damage_is_one_line(source, tmp_path, one_line_error):
    path = written(source, tmp_path / "small.safetensors")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(8 + int.from_bytes(data[:8], "little"), len(data), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with one_line_error(str(path)):
            load(path)
    path.write_bytes(data[: len(data) // 2])
    with one_line_error(str(path)):
        load(path)


def test_a_float_file_is_not_touched(source, tmp_path):
    save(tmp_path / "x.safetensors", source.params)
    read = params_to_flat(load(tmp_path / "x.safetensors").params)
    assert not any(isinstance(array, StoredMatrix) for array in read.values())
