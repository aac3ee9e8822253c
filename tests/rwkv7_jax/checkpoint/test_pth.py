import os
import pickle
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import load, params_to_flat, pth, safetensors
from rwkv7_jax.checkpoint.torch_pickle import read_pickle

HEAD = b"\x80\x02}(X\x01\x00\x00\x00w"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("


def tensor_pickle(numel: int, offset: int, shape: tuple, strides: tuple, key=b"0", kind=b"FloatStorage") -> bytes:
    """A one-tensor `data.pkl` as torch writes it, with the given numbers."""

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value

    def integer(value):
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    def integers(values):
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + integer(numel) + b"tQ"
    rest = integer(offset) + integers(shape) + integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return HEAD + REBUILD + storage + rest + b"u."


def archive(path, data_pkl: bytes, storages=(), root="m", compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", data_pkl)
        for key, data in storages:
            file.writestr(f"{root}/data/{key}", data)
        for name, data in extra:
            file.writestr(name, data)
    return path


NUMBERS = np.arange(24, dtype=np.float32)
SOUND = [("0", NUMBERS.tobytes())]


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=5),
    dtype=st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]),
    seed=st.integers(0, 99),
)
def test_write_then_read_is_bitwise(shapes, dtype, seed, tmp_path_factory, same_bits):
    rng = np.random.default_rng(seed)
    tensors = {f"tensor {i} ä": np.asarray(rng.standard_normal(shape)).astype(dtype) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("pth") / "x.pth"
    pth.write(path, tensors)
    same_bits(pth.read_tensors(path), tensors)


def test_every_format_gives_the_same_tree(tmp_path, make_flat, same_bits):
    flat = make_flat()
    pth.write(tmp_path / "a.pth", flat)
    first = load(tmp_path / "a.pth")
    safetensors.write(tmp_path / "b.safetensors", params_to_flat(first.params))
    second = load(tmp_path / "b.safetensors")
    pth.write(tmp_path / "c.pth", params_to_flat(second.params))
    same_bits(pth.read(tmp_path / "c.pth"), flat)
    assert first.report.weights_hash == second.report.weights_hash
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.safetensors", "c.pth"]


def test_a_failed_write_leaves_the_old_file(tmp_path, one_line_error):
    pth.write(tmp_path / "x.pth", {"w": NUMBERS})
    before = (tmp_path / "x.pth").read_bytes()
    with one_line_error("complex64"):
        pth.write(tmp_path / "x.pth", {"w": NUMBERS.astype(np.complex64)})
    assert (tmp_path / "x.pth").read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pth"]


def test_golden_file(shared_data, same_bits, tmp_path):
    path = shared_data / "goldens" / "rand_L3_C128_V512.pth"
    checkpoint = load(path)
    assert (checkpoint.config.n_layer, checkpoint.config.n_embd, checkpoint.config.n_head) == (3, 128, 2)
    raw = pth.read(path)
    pth.write(tmp_path / "again.pth", params_to_flat(checkpoint.params))
    same_bits(pth.read(tmp_path / "again.pth"), raw)
    assert load(tmp_path / "again.pth").report.weights_hash == checkpoint.report.weights_hash


def test_strided_and_shared_tensors(tmp_path):
    path = archive(tmp_path / "x.pth", tensor_pickle(24, 2, (3, 4), (1, 5)), SOUND)
    wanted = np.array([[2 + i + 5 * j for j in range(4)] for i in range(3)], np.float32)
    np.testing.assert_array_equal(pth.read_tensors(path)["w"], wanted)
    shared = tensor_pickle(24, 0, (24,), (1,))[:-2]
    second = tensor_pickle(24, 4, (5,), (2,))[len(HEAD) : -2]
    path = archive(tmp_path / "y.pth", shared + b"X\x01\x00\x00\x00v" + second + b"u.", SOUND)
    tensors = pth.read_tensors(path)
    np.testing.assert_array_equal(tensors["v"], NUMBERS[4:14:2])
    assert np.shares_memory(tensors["v"], tensors["w"])
    assert not tensors["v"].flags.writeable


@pytest.mark.parametrize(
    ("numel", "offset", "shape", "strides"),
    [
        (24, 0, (25,), (1,)),
        (24, 1, (24,), (1,)),
        (24, 0, (5, 5), (5, 1)),
        (24, -1, (4,), (1,)),
        (24, 23, (4,), (-1,)),
        (24, 0, (-4,), (1,)),
        (24, 0, (4,), (1, 1)),
        (24, 0, (2**40, 2**40), (0, 0)),
        (24, 0, (2**50,), (0,)),
        (24, 0, (1,) * 9, (1,) * 9),
        (2**61, 0, (2**61,), (1,)),
        (2**40, 0, (4,), (1,)),
        (23, 0, (4,), (1,)),
        (-24, 0, (4,), (1,)),
    ],
)
def test_unsound_views_are_refused(tmp_path, numel, offset, shape, strides, one_line_error):
    path = archive(tmp_path / "x.pth", tensor_pickle(numel, offset, shape, strides), SOUND)
    with one_line_error(str(path)):
        pth.read_tensors(path)


def test_expanded_views_are_read(tmp_path, one_line_error):
    path = archive(tmp_path / "x.pth", tensor_pickle(24, 2, (3, 40), (1, 0)), SOUND)
    np.testing.assert_array_equal(pth.read_tensors(path)["w"], np.repeat(NUMBERS[2:5, None], 40, 1))
    path = archive(tmp_path / "y.pth", tensor_pickle(24, 0, (2**15, 2**15), (0, 0)), SOUND)
    with one_line_error(str(path), "views"):
        pth.read_tensors(path)


def described(tree) -> bytes:
    """The part of a pickle that describes nested dicts; "TENSOR" is a tensor."""
    if tree == "TENSOR":
        return tensor_pickle(24, 0, (24,), (1,))[len(HEAD) : -2]
    if isinstance(tree, dict):
        return b"}(" + b"".join(described(key) + described(value) for key, value in tree.items()) + b"u"
    return pickle.dumps(tree, 2)[2:-1]


@pytest.mark.parametrize(
    "tree",
    [
        {"w": "TENSOR", "step": 3, "loss": 0.5, "scaler": None, "name": "x"},
        {"params": {"w": "TENSOR"}},
        {"app": {"model": {"state_dict": {"w": "TENSOR"}}}},
        {"model": {"w": "TENSOR"}, "ema": {"w": "TENSOR", "x": "TENSOR"}},
        {"network": {"w": "TENSOR"}, "optimizer": {"state": {0: {"exp_avg": "TENSOR"}}}},
        {"module": {"w": "TENSOR"}, "sparse_tensor_module_names": {"a"}, "buffer_names": ["b"]},
    ],
)
def test_tensors_are_found_where_training_tools_keep_them(tmp_path, tree):
    path = archive(tmp_path / "x.pth", b"\x80\x02" + described(tree) + b".", SOUND)
    assert list(pth.read_tensors(path)) == ["w"]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"student": {"w": "TENSOR"}, "teacher": {"w": "TENSOR"}}, "several dicts of tensors"),
        ({"optimizer": {"state": {0: {"exp_avg": "TENSOR"}}}}, "no dict of tensors"),
        ({"w": "TENSOR", "rest": {"v": "TENSOR"}}, "'rest' is not a tensor"),
        ({"epoch": 3}, "no dict of tensors"),
    ],
)
def test_what_leaves_open_which_tensors_are_meant_is_refused(tmp_path, tree, problem, one_line_error):
    path = archive(tmp_path / "x.pth", b"\x80\x02" + described(tree) + b".", SOUND)
    with one_line_error(str(path), problem):
        pth.read_tensors(path)


class Run:
    """Pickles into a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "make", [lambda m: Run(os.system, f"touch {m}"), lambda m: Run(eval, f"open({str(m)!r}, 'w')")]
)
def test_code_in_a_pickle_never_runs(tmp_path, protocol, make, one_line_error):
    marker = tmp_path / "ran"
    for payload in ({"w": make(marker)}, make(marker), {"state_dict": {"w": make(marker)}}):
        path = archive(tmp_path / "x.pth", pickle.dumps(payload, protocol), SOUND)
        with one_line_error("refused"):
            load(path)
        path.write_bytes(pickle.dumps(payload, protocol))
        with one_line_error(str(path)):
            load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "STRING"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Pid\n.", "PERSID"),
        (b"\x80\x02}ctorch\nFloatStorage\n}b.", "sets attributes"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "constructor"),
        (b"\x80\x02}}b}R.", "constructor"),
    ],
)
def test_refusals_name_what_was_asked(tmp_path, program, named, one_line_error):
    path = archive(tmp_path / "x.pth", program, SOUND)
    with one_line_error(str(path), named):
        pth.read_tensors(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02)" + b"\x85" * 100_000 + b".",
        b"\x80\x02]" + b"q\x00h\x00a" * 1000 + b".",
        b"\x80\x02" + b"]q\x00" + b"h\x00h\x00\x86q\x00" * 5000 + b".",
        b"\x80\x02X\xff\xff\xff\x7fab.",
        b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02}h\x07.",
        b"\x80\x02}(X\x01\x00\x00\x00wu.",
        b"\x80\x02}(]]u.",
        b"\x80\x02Q.",
        b"\x80\x02}Q.",
        b"\x80\x02(X\x01\x00\x00\x00atQ.",
        b"\x80\x02}.}.",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02ccollections\nOrderedDict\n(]tR.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01tR.",
        b"\x80\x02" + REBUILD + b"tR.",
        b"",
        b"hello",
    ],
)
def test_odd_pickles_are_one_line(tmp_path, program, one_line_error):
    path = archive(tmp_path / "x.pth", program, SOUND)
    with one_line_error(str(path)):
        pth.read_tensors(path)


DOUBLED = b"]q\x00" + b"h\x00\x86q\x00" * 60
"""A tuple of 2^60 values from 300 bytes."""
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01tQ"
LONG = b"](" + b"K\x01" * 100_000 + b"eq\x00"
COLLIDING = b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(1, 30_000))


HOSTILE = {
    "doubled value": b"}X\x01\x00\x00\x00w" + DOUBLED + b"s.",
    "doubled, not used": b"}X\x05\x00\x00\x00model}s" + b"X\x01\x00\x00\x00w" + DOUBLED + b"s.",
    "doubled name of a global": DOUBLED + b"h\x00\x93.",
    "doubled storage": b"(" + DOUBLED + b"NNNNtQ.",
    "doubled offset": REBUILD + STORAGE + DOUBLED + b"))tR.",
    "doubled shape": REBUILD + STORAGE + b"K\x00" + DOUBLED + b"h\x00tR.",
    "a list in itself": b"}X\x01\x00\x00\x00w]q\x00h\x00as.",
    "a dict in itself": b"}q\x00X\x01\x00\x00\x00wh\x00s.",
    "nested tuples": b"}X\x01\x00\x00\x00w)" + b"\x85" * 100_000 + b"s.",
    "open marks": b"}" + b"(" * 100_000 + b".",
    "one memo entry": b"}" + b"q\x00" * 3_000_000 + b".",
    "memo": b"}" + b"\x94" * 3_000_000 + b".",
    "items": b"}" + b"K\x00K\x00s" * 1_000_000 + b".",
    "copies": LONG + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 30_000 + b".",
    "keys of one hash": b"}(" + COLLIDING + b"u.",
    "long name": b"ctorch\n" + b"x" * 10_000_000 + b"\n.",
    "long key": b"}X\x00\x00\x80\x00" + b"x" * 2**23 + b"Ns.",
    "long pickle": b"}" + b"N0" * 2**23 + b".",
}
TIMED = """
import sys, time
from rwkv7_jax.checkpoint import CheckpointError, pth
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        pth.read_tensors(path)
    except CheckpointError as error:
        print(f"{time.process_time() - start:.2f}", error)
"""
"""The reader without the type checks of the tests, which take longer than it."""


def test_hostile_pickles_end_soon(tmp_path):
    paths = [archive(tmp_path / f"{name}.pth", b"\x80\x02" + program, SOUND) for name, program in HOSTILE.items()]
    done = subprocess.run(
        [sys.executable, "-c", TIMED, *paths], capture_output=True, text=True, check=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        seconds, message = line.split(" ", 1)
        assert message.startswith(str(path))
        assert float(seconds) < 5, f"{line}: CPU seconds"


def test_bounds_leave_room_for_large_models():
    tensors = {f"blocks.{i}.att.receptance.weight": np.zeros((2, 3), np.float32) for i in range(4_000)}
    state = {"state_dict": {}, "optimizer": {i: {"step": i, "betas": (0.9, 0.99)} for i in range(4_000)}}
    tree = read_pickle(pth._pickle(tensors))
    assert isinstance(tree, dict)
    assert len(tree) == 4_000
    assert read_pickle(pickle.dumps(state, 2)) == state


def test_metadata_of_a_state_dict_is_dropped():
    ordered = b"ccollections\nOrderedDict\n)R"
    program = b"\x80\x02" + ordered + b"}X\x09\x00\x00\x00_metadata" + ordered + b"sb."
    assert read_pickle(program) == {}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "m/../../evil", "..\\evil", "C:\\evil"])
def test_entries_pointing_outside_are_refused(tmp_path, name, one_line_error):
    path = archive(tmp_path / "x.pth", tensor_pickle(24, 0, (24,), (1,)), SOUND, extra=[(name, b"x")])
    with one_line_error("outside"):
        pth.read_tensors(path)
    assert os.listdir(tmp_path) == ["x.pth"]


def test_other_containers_are_one_line(tmp_path, one_line_error):
    sound = tensor_pickle(24, 0, (24,), (1,))
    with one_line_error("compressed"):
        pth.read_tensors(archive(tmp_path / "a.pth", sound, SOUND, compression=zipfile.ZIP_DEFLATED))
    with one_line_error("big-endian"):
        pth.read_tensors(archive(tmp_path / "b.pth", sound, SOUND, extra=[("m/byteorder", b"big")]))
    with one_line_error("not one that torch.save wrote"):
        pth.read_tensors(archive(tmp_path / "c.pth", sound, SOUND, extra=[("n/data.pkl", b"")]))
    with one_line_error("m/data/7"):
        pth.read_tensors(archive(tmp_path / "d.pth", tensor_pickle(24, 0, (24,), (1,), key=b"7"), SOUND))
    with one_line_error("../0"):
        pth.read_tensors(archive(tmp_path / "e.pth", tensor_pickle(24, 0, (24,), (1,), key=b"../0"), SOUND))
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    (tmp_path / "f.pth").write_bytes(legacy)
    with one_line_error("before 1.6"):
        load(tmp_path / "f.pth")
    with zipfile.ZipFile(tmp_path / "g.pth", "w") as file:
        file.writestr("word/document.xml", "x")
    with one_line_error("torch.save"):
        load(tmp_path / "g.pth")


def small_file(path, make_flat) -> bytes:
    pth.write(path, make_flat(RWKV7Config(5, 1, 4, 2, 3, 2, 2, 2, 2)))
    return path.read_bytes()


def test_truncation_anywhere_is_one_line(tmp_path, make_flat, one_line_error):
    path = tmp_path / "x.pth"
    data = small_file(path, make_flat)
    rng = np.random.default_rng(0)
    for size in [0, 1, 3, 4, 29, 30, 64, len(data) - 1, *rng.integers(0, len(data), 120)]:
        path.write_bytes(data[: int(size)])
        with one_line_error(str(path)):
            load(path)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite numbers")
def test_bit_flips_never_crash(tmp_path, make_flat, survives):
    path = tmp_path / "x.pth"
    data = small_file(path, make_flat)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(data), 400):
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        survives(load, path)


def test_bit_flips_never_change_the_weights(tmp_path, make_flat, same_bits, survives):
    path = tmp_path / "x.pth"
    data = small_file(path, make_flat)
    sound = {name: array.copy() for name, array in pth.read_tensors(path).items()}
    with zipfile.ZipFile(path) as file:
        inside = [info.header_offset + 200 for info in file.infolist() if "/data/" in info.filename]
    rng = np.random.default_rng(2)
    for place in [*inside[:-1], *rng.integers(0, len(data), 600)]:
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        if found := survives(pth.read_tensors, path):
            same_bits(found, sound)


def test_the_checksum_of_every_entry_is_checked(tmp_path, one_line_error):
    path = archive(tmp_path / "x.pth", tensor_pickle(24, 0, (24,), (1,)), SOUND)
    data = path.read_bytes()
    for part, entry in ((NUMBERS.tobytes(), "m/data/0"), (b"_rebuild_tensor_v2", "m/data.pkl")):
        at = data.index(part) + 9
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with one_line_error(str(path), entry, "CRC-32"):
            pth.read_tensors(path)


def test_files_without_checksums_are_read(tmp_path, same_bits):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.from_numpy(NUMBERS)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    same_bits(pth.read_tensors(tmp_path / "x.pth"), {"w": NUMBERS})


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_random_pickles_never_crash(tmp_path_factory, survives, program):
    path = archive(tmp_path_factory.mktemp("fuzz") / "x.pth", b"\x80\x02" + program, SOUND)
    survives(pth.read_tensors, path)


def test_torch_loads_what_was_written(tmp_path, make_flat):
    torch = pytest.importorskip("torch")
    flat = make_flat() | {
        "half": NUMBERS.astype(np.float16),
        "whole": np.arange(5),
        "empty": np.zeros((0, 3), np.float32),
    }
    pth.write(tmp_path / "x.pth", flat)
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "x.pth", map_location="cpu", weights_only=True, mmap=mmap)
        assert list(loaded) == list(flat)
        for name, tensor in loaded.items():
            assert str(tensor.dtype).removeprefix("torch.") == str(flat[name].dtype)
            np.testing.assert_array_equal(tensor.double().numpy(), flat[name].astype(np.float64))


def test_files_of_torch_itself(tmp_path, make_flat):
    torch = pytest.importorskip("torch")
    flat = {n: torch.from_numpy(a.astype(np.float32)).bfloat16() for n, a in make_flat(unused=True).items()}
    big = torch.randn(40, 12)
    flat["emb.weight"] = big[3:14].bfloat16()
    flat["blocks.0.att.key.weight"] = torch.randn(12, 12).bfloat16().t()
    flat["head.weight"] = torch.nn.Parameter(torch.randn(11, 24).bfloat16()[:, ::2])
    for wrap in (dict, torch.nn.ParameterDict().state_dict().__class__, lambda d: {"state_dict": d, "epoch": 3}):
        torch.save(wrap(flat), tmp_path / "x.pth")
        read = pth.read(tmp_path / "x.pth")
        for name, tensor in flat.items():
            np.testing.assert_array_equal(read[name].astype(np.float32), tensor.detach().float().numpy())
        assert load(tmp_path / "x.pth").report.unused == tuple(f"blocks.0.att.v{i}" for i in range(3))
    torch.save(flat, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before 1\.6"):
        load(tmp_path / "old.pth")


def test_plain_values_are_read_as_pickle_reads_them():
    value = {"a": (1, 2.5, None, True, False, "ü", -(2**40)), "b": [1, 2], "c": {}, "d": ((), ((1,),), 300, 70_000)}
    for protocol in (2, 3, 4, 5):
        assert read_pickle(pickle.dumps(value, protocol)) == value
