import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as library

from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import flat_to_params, load, params_to_flat, safetensors, save, weights_hash

ATTENTION = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
LORA = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
TOP = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}


def fla(flat, *, stacked: bool):
    """The inverse map: released names -> fla's, as its conversion script writes them."""
    out = {}
    for name, array in flat.items():
        if name in TOP:
            out[TOP[name]] = array
            continue
        _, layer, part, rest = name.split(".", 3)
        prefix = f"model.layers.{layer}."
        norms = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
        if part in norms:
            out[f"{prefix}{norms[part]}.{rest}"] = array
        elif part == "ffn":
            out[f"{prefix}ffn.{rest}"] = array.reshape(-1) if rest == "x_k" else array
        elif len(rest) == 2 and rest[0] in "wavg" and rest[1] in "012":
            value = array.reshape(-1) if rest[1] == "0" else np.ascontiguousarray(array.T)
            out[f"{prefix}attn.{rest[0]}_lora.lora.{LORA[rest[1]]}"] = value
        elif rest.startswith("x_") and stacked:
            order = "rwkvag".index(rest[2])
            rows = out.setdefault(f"{prefix}attn.x_x", np.empty((6, array.size), array.dtype))
            rows[order] = array.reshape(-1)
        else:
            head, _, tail = rest.partition(".")
            vector = head in ("k_k", "k_a")
            out[f"{prefix}attn." + ATTENTION.get(head, head) + (f".{tail}" if tail else "")] = (
                array.reshape(-1) if vector else array
            )
    return out


def transformers(flat):
    """Released names -> the official Hugging Face ones: a prefix on all but the head."""
    return {name if name.startswith("head.") else f"rwkv7.{name}": array for name, array in flat.items()}


def rewrite(tmp_path, edit, flat):
    """A file whose header went through `edit`."""
    safetensors.write(tmp_path / "x.safetensors", flat)
    data = (tmp_path / "x.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(edit(header) or header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return tmp_path / "x.safetensors"


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=5),
    dtypes=st.lists(st.sampled_from(list(safetensors.DTYPES.values())), min_size=5, max_size=5),
)
def test_bitwise_with_the_reference_library(shapes, dtypes, tmp_path_factory, same_bits):
    folder = tmp_path_factory.mktemp("st")
    rng = np.random.default_rng(len(shapes))
    pairs = zip(shapes, dtypes, strict=False)
    tensors = {f"t{i} é": np.asarray(rng.integers(0, 2, shape)).astype(dtype) for i, (shape, dtype) in enumerate(pairs)}
    safetensors.write(folder / "ours", tensors, {"note": "x"})
    ours, metadata = safetensors.read_tensors(folder / "ours")
    same_bits(ours, tensors)
    assert metadata == {"note": "x"}
    plain = {name: array for name, array in tensors.items() if array.dtype.name[:6] != "float8"}
    library.save_file(plain, folder / "theirs")
    same_bits(safetensors.read_tensors(folder / "theirs")[0], plain)
    safetensors.write(folder / "plain", plain)
    same_bits(library.load_file(folder / "plain"), plain)


@pytest.mark.parametrize("layout", ["released", "fla", "fla x_x", "transformers", "model.", "_orig_mod."])
@pytest.mark.parametrize("unused", [False, True])
def test_every_key_layout_gives_the_same_model(tmp_path, layout, unused, make_flat, same_bits, small):
    flat = make_flat(unused=unused and layout[:3] != "fla")
    renamed = {
        "released": lambda: flat,
        "fla": lambda: fla(flat, stacked=False),
        "fla x_x": lambda: fla(flat, stacked=True),
        "transformers": lambda: transformers(flat),
        "model.": lambda: {name if name[:4] == "head" else f"model.{name}": array for name, array in flat.items()},
        "_orig_mod.": lambda: {f"_orig_mod.{name}": array for name, array in flat.items()},
    }[layout]()
    safetensors.write(tmp_path / "model.safetensors", renamed)
    checkpoint = load(tmp_path / "model.safetensors")
    assert checkpoint.config == small
    assert checkpoint.report.weights_hash == weights_hash(flat_to_params(flat))
    same_bits(params_to_flat(checkpoint.params), params_to_flat(flat_to_params(flat)))
    named = layout.split()[0].rstrip(".")
    assert (named if named in ("fla", "transformers") else "released") in checkpoint.report.format
    assert load(tmp_path).report.weights_hash == checkpoint.report.weights_hash


def test_sharded_folder_and_tied_head(tmp_path, make_flat, one_line_error):
    flat = fla(make_flat() | {"head.weight": make_flat()["emb.weight"]}, stacked=False)
    del flat["lm_head.weight"]
    names = sorted(flat)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.write(tmp_path / file, {name: flat[name] for name in part})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with one_line_error("head.weight"):
        load(tmp_path)
    config = {"model_type": "rwkv7", "tie_word_embeddings": True, "norm_eps": 1e-5, "hidden_act": "sqrelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    params = load(tmp_path).params
    np.testing.assert_array_equal(params["head"]["weight"], params["emb"]["weight"])
    for key, value in (("norm_eps", 1e-6), ("model_type", "llama"), ("hidden_act", "silu")):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with one_line_error(str(tmp_path), str(value)):
            load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with one_line_error(str(tmp_path)):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    index["weight_map"]["x"] = "../x.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with one_line_error("outside"):
        load(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    index["weight_map"].pop("x")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with one_line_error("model-00002-of-00002.safetensors"):
        load(tmp_path)


def test_save_is_checked_on_load(tmp_path, make_flat, same_bits, one_line_error):
    params = flat_to_params(make_flat(unused=True))
    save(tmp_path / "x.safetensors", params)
    same_bits(params_to_flat(load(tmp_path / "x.safetensors").params), params_to_flat(params))
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[-100] ^= 4
    (tmp_path / "x.safetensors").write_bytes(data)
    with one_line_error("hash"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"dtype": "F4"}, "F4"),
        ({"shape": [-1]}, "not sound"),
        ({"shape": [True, 12]}, "not sound"),
        ({"shape": [2**70]}, "do not hold"),
        ({"shape": [3]}, "do not hold"),
        ({"data_offsets": [0, 10**9], "shape": [10**9 // 2]}, "truncated"),
        ({"data_offsets": [24, 0]}, "do not hold"),
        ({"data_offsets": [-24, 0]}, "not sound"),
        ({"data_offsets": 3}, "damaged"),
        ({"shape": None}, "damaged"),
    ],
)
def test_unsound_headers_are_one_line(tmp_path, entry, named, make_flat, one_line_error):
    path = rewrite(tmp_path, lambda header: header["ln_out.bias"].update(entry), make_flat())
    with one_line_error(str(path), named):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"a":3}',
        b'{"a":{},"a":{}}',
        b'{"__metadata__":3}',
        b"{" * 50_000,
        b'{"a":' * 50_000,
        b"\xff{",
    ],
)
def test_odd_headers_are_one_line(tmp_path, header, one_line_error):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with one_line_error(str(path)):
        load(path, format="safetensors")


@pytest.mark.filterwarnings("ignore:.*NaN or infinite numbers")
def test_truncations_and_bit_flips(tmp_path, make_flat, one_line_error, survives):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, make_flat(RWKV7Config(5, 1, 4, 2, 3, 2, 2, 2, 2)))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for size in [0, 1, 7, 8, 9, len(data) - 1, *rng.integers(0, len(data), 100)]:
        path.write_bytes(data[: int(size)])
        with one_line_error(str(path)):
            load(path)
    for place in rng.integers(0, len(data), 400):
        flipped = bytearray(data)
        flipped[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        survives(load, path)


def test_dtypes_that_no_model_uses(tmp_path, make_flat, one_line_error):
    flat = make_flat() | {"head.weight": np.zeros((11, 12), ml_dtypes.float8_e4m3fn)}
    safetensors.write(tmp_path / "x.safetensors", flat)
    with one_line_error("head.weight", "float8_e4m3fn"):
        load(tmp_path / "x.safetensors")
    with one_line_error("complex64"):
        safetensors.write(tmp_path / "y.safetensors", {"x": np.zeros(2, np.complex64)})
    assert not (tmp_path / "y.safetensors").exists()
