import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.commands.state import main as cli
from rwkv7_jax import State
from rwkv7_jax.checkpoint import (
    LAYOUTS,
    detect_layout,
    export_state,
    from_rwkv_list,
    load,
    load_state,
    pth,
    read_state_tensors,
    safetensors,
    save_state,
    to_rwkv_list,
)


def random_state(seed=0, depth=3, heads=2, size=4, *, shifts=True, half=False) -> State:
    rng = np.random.default_rng(seed)
    wkv = rng.standard_normal((depth, heads, size, size)).astype(np.float16 if half else np.float32)
    shift = rng.standard_normal((2, depth, heads * size)).astype(np.float32) * shifts
    return State(jnp.asarray(shift[0]), jnp.asarray(shift[1]), jnp.asarray(wkv.astype(np.float32)))


def assert_equal(a: State, b: State):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(x, y)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    dims=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    suffix=st.sampled_from([".pth", ".st", ".safetensors"]),
)
def test_round_trip_through_every_layout(seed, dims, layout, suffix, tmp_path_factory):
    state = random_state(seed, *dims, shifts=False, half=layout == "web-rwkv")
    path = tmp_path_factory.mktemp("state") / f"x{suffix}"
    export_state(path, state, layout=layout)
    back, metadata = load_state(path, layout=layout)
    assert_equal(back, state)
    assert suffix == ".pth" or metadata.pop("state_hash")
    assert "format" not in metadata or metadata == {"format": "pt"}
    assert set(read_state_tensors(path)[0]) == {f"blocks.{i}.att.time_state" for i in range(dims[0])}


@pytest.mark.parametrize(
    ("layout", "shape", "dtype", "swapped"),
    [
        ("value_key", (2, 4, 4), np.float32, False),
        ("rwkv-runner", (2, 4, 4), np.float32, False),
        ("rlhf", (2, 4, 4), np.float32, True),
        ("fla", (1, 2, 4, 4), np.float32, True),
        ("web-rwkv", (2, 4, 4), np.float16, True),
    ],
)
def test_what_each_tool_finds_in_the_file(tmp_path, layout, shape, dtype, swapped):
    state = random_state(shifts=False, half=True)
    export_state(tmp_path / "x.pth", state, layout=layout)
    array = pth.read_tensors(tmp_path / "x.pth")["blocks.1.att.time_state"]
    assert (array.shape, array.dtype) == (shape, dtype)
    wanted = np.asarray(state.wkv[1])
    np.testing.assert_array_equal(array.reshape(2, 4, 4), np.swapaxes(wanted, 1, 2) if swapped else wanted)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), shifts=st.booleans())
def test_our_own_file_keeps_everything(seed, shifts, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    state = random_state(seed, shifts=shifts)
    save_state(path, state, metadata={"base_model_hash": "ab" * 32, "method": "standard", "metrics": {"loss": 1.5}})
    back, metadata = load_state(path)
    assert_equal(back, state)
    assert metadata["layout"] == "value_key"
    assert metadata["method"] == "standard"
    assert json.loads(metadata["metrics"]) == {"loss": 1.5}
    tensors, _ = safetensors.read_tensors(path)
    assert len(tensors) == (9 if shifts else 3)


def test_base_model_is_compared(tmp_path):
    save_state(tmp_path / "x.st", random_state(), metadata={"base_model_hash": "ab" * 32})
    load_state(tmp_path / "x.st", base_model_hash="ab" * 32)
    with pytest.warns(UserWarning, match="base model") as caught:
        load_state(tmp_path / "x.st", base_model_hash="cd" * 32)
    assert "\n" not in str(caught[0].message)


def test_a_base_model_of_control_characters_is_not_shown_as_it_is(tmp_path):
    save_state(tmp_path / "x.st", random_state(), metadata={"base_model_hash": "\x1b[2J\u202e" * 9})
    with pytest.warns(UserWarning, match="base model") as caught:
        load_state(tmp_path / "x.st", base_model_hash="cd" * 32)
    assert str(caught[0].message).isprintable()


def test_wrong_model_is_one_line(tmp_path, small, one_line_error):
    save_state(tmp_path / "x.st", random_state(depth=3, heads=3, size=4), metadata={})
    load_state(tmp_path / "x.st", config=small)
    for change in ({"n_layer": 2}, {"n_embd": 24}, {"head_size": 6}):
        with one_line_error("x.st", "3 layers with 3 heads of 4"):
            load_state(tmp_path / "x.st", config=dataclasses.replace(small, **change))


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model.", "_forward_module.module.", "_orig_mod."])
@pytest.mark.parametrize("suffix", [".pth", ".st"])
def test_prefixes_of_training_tools_are_dropped(tmp_path, prefix, suffix):
    state = random_state(shifts=False)
    tensors = {f"{prefix}blocks.{i}.att.time_state": np.asarray(s) for i, s in enumerate(state.wkv)}
    (pth if suffix == ".pth" else safetensors).write(tmp_path / f"x{suffix}", tensors)
    assert_equal(load_state(tmp_path / f"x{suffix}", layout="value_key").state, state)
    assert set(read_state_tensors(tmp_path / f"x{suffix}")[0]) == {f"blocks.{i}.att.time_state" for i in range(3)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_merged_into_a_model_is_read_apart(tmp_path, make_flat, prefix, capsys):
    state, flat = random_state(heads=3, shifts=False), make_flat(dtype=np.float32)
    merged = flat | {f"blocks.{i}.att.time_state": np.asarray(s) for i, s in enumerate(state.wkv)}
    pth.write(tmp_path / "merged.pth", {prefix + name: array for name, array in merged.items()})
    pth.write(tmp_path / "plain.pth", flat)
    report = load(tmp_path / "merged.pth").report
    assert report.weights_hash == load(tmp_path / "plain.pth").report.weights_hash
    assert "3 time_state tensors" in str(report)
    assert_equal(load_state(tmp_path / "merged.pth", layout="value_key").state, state)
    out = str(tmp_path / "state.pth")
    line = ["convert", str(tmp_path / "merged.pth"), "--layout", "value_key", "--to", "value_key", "--output", out]
    assert cli(line) == 0
    assert_equal(load_state(out, layout="value_key").state, state)
    capsys.readouterr()


@pytest.mark.parametrize("broken", ["not finite", "unbatched", "unknown layout"])
def test_errors_of_writing_name_the_path(tmp_path, broken, one_line_error):
    state, layout = random_state(shifts=False), "fla"
    if broken == "unknown layout":
        layout = "keyvalue"
    else:
        state = state._replace(wkv=state.wkv * np.nan if broken == "not finite" else state.wkv[:, None])
        with one_line_error(str(tmp_path / "x.st"), broken):
            save_state(tmp_path / "x.st", state, metadata={})
    with one_line_error(str(tmp_path / "x.st"), broken):
        export_state(tmp_path / "x.st", state, layout=layout)


def test_a_foreign_file_needs_a_layout(tmp_path, one_line_error):
    export_state(tmp_path / "x.pth", random_state(shifts=False), layout="rlhf")
    with one_line_error("layout=", "web-rwkv"):
        load_state(tmp_path / "x.pth")
    with one_line_error("unknown layout"):
        load_state(tmp_path / "x.pth", layout="keyvalue")


@pytest.mark.parametrize("layout", ["value_key", "rlhf", "fla"])
def test_layout_by_loss(tmp_path, layout, one_line_error):
    state = random_state(shifts=False)
    export_state(tmp_path / "x.pth", state, layout=layout)
    tensors, _ = read_state_tensors(tmp_path / "x.pth")
    guess = detect_layout(tensors, lambda candidate: jnp.mean((candidate.wkv - state.wkv) ** 2))
    assert guess.layout == layout
    assert guess.losses[layout] == 0
    assert len(guess.losses) == 2
    assert max(guess.losses.values()) > 0
    assert_equal(load_state(tmp_path / "x.pth", layout=guess.layout).state, state)
    with one_line_error("not finite"):
        detect_layout(tensors, lambda _: float("nan"))


def test_shifts_do_not_vanish_silently(tmp_path, one_line_error):
    state = random_state()
    with one_line_error("drop_shifts"):
        export_state(tmp_path / "x.pth", state, layout="value_key")
    export_state(tmp_path / "x.pth", state, layout="value_key", drop_shifts=True)
    np.testing.assert_array_equal(load_state(tmp_path / "x.pth", layout="value_key").state.wkv, state.wkv)


def test_values_that_do_not_fit(tmp_path, one_line_error):
    state = random_state(shifts=False)
    with one_line_error("float16"):
        export_state(tmp_path / "x.st", state._replace(wkv=state.wkv * 1e6), layout="web-rwkv")
    with one_line_error("unbatched"):
        export_state(tmp_path / "x.st", state._replace(wkv=state.wkv[:, None]), layout="fla")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks.1.att.time_state": None}, "[0, 2]"),
        ({"blocks.1.att.time_state": np.zeros((2, 4, 5), np.float32)}, "[2, 4, 5]"),
        ({"blocks.1.att.time_state": np.zeros((2, 2, 4, 4), np.float32)}, "[2, 2, 4, 4]"),
        ({"blocks.1.att.time_state": np.zeros((2, 4, 4), np.int32)}, "int32"),
        ({"blocks.1.att.time_state": np.full((2, 4, 4), np.nan, np.float32)}, "not finite"),
        ({"blocks.1.att_shift": np.zeros(7, np.float32)}, "[7]"),
        ({"emb.weight": np.zeros((4, 4), np.float32)}, "model checkpoint"),
    ],
)
def test_unfit_tensors_are_one_line(tmp_path, change, named, one_line_error):
    tensors = {f"blocks.{i}.att.time_state": np.zeros((2, 4, 4), np.float32) for i in range(3)} | change
    safetensors.write(tmp_path / "x.st", {name: array for name, array in tensors.items() if array is not None})
    with one_line_error("x.st", named):
        load_state(tmp_path / "x.st", layout="value_key")


def test_damage_is_noticed(tmp_path, one_line_error, survives):
    path = tmp_path / "x.st"
    save_state(path, random_state(), metadata={"method": "standard"})
    data = path.read_bytes()
    body = len(data) - sum(a.nbytes for a in safetensors.read_tensors(path)[0].values())
    rng = np.random.default_rng(0)
    for place in rng.integers(body, len(data), 40):
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with one_line_error("hash"):
            load_state(path)
    for place in rng.integers(0, body, 200):
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        survives(load_state, path)
    path.write_text("not a state")
    with one_line_error("x.st"):
        load_state(path)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "none.st")


@pytest.mark.parametrize("suffix", [".pth", ".st", ".safetensors"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_damage_to_an_exported_state_is_noticed(tmp_path, suffix, layout, one_line_error):
    path = tmp_path / f"x{suffix}"
    export_state(path, random_state(shifts=False, half=True), layout=layout)
    data = path.read_bytes()
    tensors, _ = read_state_tensors(path)
    for array in tensors.values():
        at = data.index(array.tobytes()) + array.nbytes // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with one_line_error(str(path), "damaged"):
            load_state(path, layout=layout)
    path.write_bytes(data)
    load_state(path, layout=layout)


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_list_of_the_rwkv_package(seed):
    state = random_state(seed)
    arrays = to_rwkv_list(state)
    assert [array.shape for array in arrays[:3]] == [(8,), (2, 4, 4), (8,)]
    np.testing.assert_array_equal(arrays[4], state.wkv[1])
    assert_equal(from_rwkv_list(arrays), state)
    with pytest.raises(ValueError, match="three arrays"):
        from_rwkv_list(arrays[:-1])


def test_command_line_rewrites_a_state_for_another_tool(tmp_path, capsys):
    state = random_state(shifts=False)
    save_state(tmp_path / "ours.safetensors", state, metadata={})
    foreign = str(tmp_path / "foreign.pth")
    assert cli(["convert", str(tmp_path / "ours.safetensors"), "--output", foreign, "--to", "rlhf"]) == 0
    assert "3 layers, 2 heads of 4, layout rlhf" in capsys.readouterr().out
    np.testing.assert_array_equal(load_state(foreign, layout="rlhf").state.wkv, state.wkv)
    assert cli(["convert", foreign, "--output", str(tmp_path / "again.st"), "--to", "web-rwkv"]) == 2
    assert "axis order cannot be seen" in capsys.readouterr().err
    assert cli(["convert", foreign, "--output", str(tmp_path / "again.bin"), "--to", "fla"]) == 2
    assert "suffix must be one of .pth, .safetensors, .st" in capsys.readouterr().err


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    state = random_state()
    for broken in (state._replace(wkv=state.wkv * np.nan), state._replace(att_shift=state.att_shift * np.inf)):
        with pytest.raises(ValueError, match="not finite"):
            save_state(tmp_path / "state.safetensors", broken, metadata={})
    assert not list(tmp_path.iterdir())


def test_what_is_no_state_is_named_before_its_layout(tmp_path):
    pth.write(tmp_path / "model.pth", {"emb.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(ValueError, match="is this a model checkpoint"):
        load_state(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match="no such state file"):
        load_state(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("layout", [None, "keyvalue"])
def test_a_layout_that_is_missing_says_whose_each_is(tmp_path, layout, one_line_error):
    state = random_state(shifts=False)
    export_state(tmp_path / "x.st", state, layout="rlhf")
    with one_line_error("x.st", "rlhf (OpenMOSE/RWKV-LM-RLHF)", "web-rwkv (web-rwkv, Ai00 (.st))", "RWKV-PEFT"):
        load_state(tmp_path / "x.st", layout=layout)
