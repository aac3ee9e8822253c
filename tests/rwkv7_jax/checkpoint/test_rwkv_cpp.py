import struct

import numpy as np
import pytest

from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import CheckpointError, load, params_to_flat, rwkv_cpp
from rwkv7_jax.checkpoint.ggml_blocks import BYTES, BlockMatrix
from tests.rwkv7_jax.checkpoint.test_ggml_blocks import GOLDEN

TINY = "checkpoints/rwkv_cpp_tiny7/tiny-rwkv-7v0-834K"


@pytest.fixture
def tiny(shared_data):
    return {kind: shared_data / f"{TINY}-{kind}.bin" for kind in ("FP32", "FP16")}


def test_real_checkpoint_in_both_precisions(tiny):
    full, half = load(tiny["FP32"]), load(tiny["FP16"])
    assert full.config == half.config
    assert (full.config.n_layer, full.config.n_embd, full.config.vocab_size, full.config.dim_ffn) == (12, 64, 256, 256)
    assert full.report.parameter_count == 829_888
    assert full.report.dtypes == ("float32",)
    assert half.report.dtypes == ("float16", "float32")
    exact, rounded = params_to_flat(full.params), params_to_flat(half.params)
    for name, array in exact.items():
        np.testing.assert_array_equal(array.astype(rounded[name].dtype), rounded[name], err_msg=name)


@pytest.mark.parametrize("kind", ["FP32", "FP16"])
def test_written_as_rwkv_cpp_writes(tiny, kind, tmp_path, same_bits):
    flat = params_to_flat(load(tiny["FP32"]).params)
    rwkv_cpp.write(tmp_path / "x.bin", flat, kind)
    theirs = tiny[kind].read_bytes()
    assert (tmp_path / "x.bin").stat().st_size == len(theirs)
    assert (tmp_path / "x.bin").read_bytes()[:24] == theirs[:24]
    same_bits(rwkv_cpp.read(tmp_path / "x.bin"), rwkv_cpp.read(tiny[kind]))
    assert load(tmp_path / "x.bin").report.weights_hash == load(tiny[kind]).report.weights_hash


def test_round_trip_of_random_weights(tmp_path, make_flat, same_bits):
    flat = make_flat(dtype=np.float32)
    rwkv_cpp.write(tmp_path / "x.bin", flat)
    same_bits(params_to_flat(load(tmp_path / "x.bin").params), flat)
    assert load(tmp_path / "x.bin").report.format == "rwkv.cpp .bin (FP32)"


def test_values_beyond_float16_are_refused(tmp_path, make_flat, one_line_error):
    flat = make_flat(dtype=np.float32)
    flat["head.weight"][0, 0] = 1e6
    with one_line_error("head.weight", "float16"):
        rwkv_cpp.write(tmp_path / "x.bin", flat, "FP16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "name"), [(13, "Q4_K"), (10, "Q8_1"), (4, "Q4_1_O"), (77, "number 77"), (7, "Q5_0")])
def test_quantised_types_are_named(tmp_path, make_flat, kind, name, one_line_error):
    rwkv_cpp.write(tmp_path / "x.bin", make_flat())
    data = bytearray((tmp_path / "x.bin").read_bytes())
    data[32:36] = struct.pack("<I", kind)
    (tmp_path / "x.bin").write_bytes(data)
    with one_line_error("emb.weight", name):
        load(tmp_path / "x.bin")


@pytest.mark.parametrize("name", BYTES)
def test_quantised_matrices_are_read(tmp_path, make_flat, name):
    config = RWKV7Config(vocab_size=7, n_layer=2, n_embd=32, head_size=16, dim_ffn=64)
    flat = make_flat(config, dtype=np.float32)
    rwkv_cpp.write(tmp_path / "x.bin", flat)
    data, kind = (tmp_path / "x.bin").read_bytes(), next(i for i, n in rwkv_cpp.QUANTISED.items() if n == name)
    block = np.frombuffer(bytes.fromhex(GOLDEN[name][0]), np.uint8)
    for key in ("blocks.0.att.key.weight", "blocks.1.ffn.value.weight"):
        rows, width = flat[key].shape
        head = struct.pack("<2I", width, rows) + key.encode()
        at = data.index(head) + len(head)
        blocks = np.tile(block, rows * width // 32).tobytes()
        data = data[: at - len(head) - 4] + struct.pack("<I", kind) + head + blocks + data[at + flat[key].nbytes :]
    (tmp_path / "x.bin").write_bytes(data)
    read = params_to_flat(load(tmp_path / "x.bin").params)
    for key, array in flat.items():
        expected = array
        if key in ("blocks.0.att.key.weight", "blocks.1.ffn.value.weight"):
            expected = np.tile(np.asarray(BlockMatrix(name, block[None, None])), (len(array), array.shape[1] // 32))
        np.testing.assert_array_equal(np.asarray(read[key]), expected)
    (tmp_path / "x.bin").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:.*NaN or infinite numbers")
def test_damage_is_one_line(tmp_path, make_flat, one_line_error, survives):
    path = tmp_path / "x.bin"
    rwkv_cpp.write(path, make_flat())
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for size in [0, 3, 4, 20, 24, 30, len(data) - 1, *rng.integers(0, len(data), 80)]:
        path.write_bytes(data[: int(size)])
        with one_line_error(str(path)):
            load(path)
    with one_line_error("version 99"):
        path.write_bytes(data[:4] + struct.pack("<I", 99) + data[8:])
        load(path)
    with one_line_error("twice"):
        path.write_bytes(data + data[24:])
        load(path)
    for place in rng.integers(0, len(data), 200):
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        survives(load, path)
