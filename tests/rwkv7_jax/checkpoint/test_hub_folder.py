"""Folders as flash-linear-attention loads them: names, shapes, settings; whole or not at all."""

import json

import numpy as np
import pytest

from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import hub_folder, load, safetensors
from rwkv7_jax.checkpoint.layouts import fla_to_released
from rwkv7_jax.checkpoint.names import flat_to_params, params_to_flat, weights_hash

HUB = RWKV7Config(
    vocab_size=11, n_layer=2, n_embd=64, head_size=64, dim_ffn=20, decay_lora=5, aaa_lora=3, mv_lora=2, gate_lora=6
)
# Parameters of fla's RWKV7Block (layer 1) and of what stands around the blocks, with their shapes for these dimensions:
# fla/models/rwkv7/modeling_rwkv7.py, fla/layers/rwkv7.py and LoRA in fla/layers/rwkv6.py, bc3b101.
D, F, LORA = 64, 20, "attn.{}_lora.lora"
BLOCK = {
    "attn_norm.weight": (D,), "attn_norm.bias": (D,), "ffn_norm.weight": (D,), "ffn_norm.bias": (D,),
    **{f"attn.x_{letter}": (1, 1, D) for letter in "rwkvag"},
    "attn.k_k": (D,), "attn.k_a": (D,), "attn.r_k": (1, D),
    **{f"attn.{letter}_proj.weight": (D, D) for letter in "rkvo"},
    **{f"{LORA.format(letter)}.0.weight": (rank, D) for letter, rank in {"w": 5, "v": 2, "a": 3, "g": 6}.items()},
    **{f"{LORA.format(letter)}.2.weight": (D, rank) for letter, rank in {"w": 5, "v": 2, "a": 3, "g": 6}.items()},
    **{f"{LORA.format(letter)}.2.bias": (D,) for letter in "wva"},
    "attn.g_norm.weight": (D,), "attn.g_norm.bias": (D,),
    "ffn.x_k": (D,), "ffn.key.weight": (F, D), "ffn.value.weight": (D, F),
}  # fmt: skip
TOP = {
    "model.embeddings.weight": (11, D),
    "model.norm.weight": (D,),
    "model.norm.bias": (D,),
    "lm_head.weight": (11, D),
}


def write(folder, flat, config=HUB, **files):
    digest = weights_hash(flat_to_params(flat))
    hub_folder.write(folder, flat, config, weights_hash=digest, eos_id=0, card="# card\n", files=files)


def test_names_and_shapes_are_those_of_flas_modules(make_flat):
    found = {name: array.shape for name, array in hub_folder.released_to_fla(make_flat(HUB)).items()}
    layer0 = {name: shape for name, shape in BLOCK.items() if "v_lora" not in name}
    layer0 |= {"pre_norm.weight": (D,), "pre_norm.bias": (D,)}
    wanted = TOP | {f"model.layers.0.{name}": shape for name, shape in layer0.items()}
    assert found == wanted | {f"model.layers.1.{name}": shape for name, shape in BLOCK.items()}


@pytest.mark.parametrize("config", [HUB, None])
def test_names_go_there_and_back(make_flat, same_bits, config):
    flat = make_flat() if config is None else make_flat(config)
    there = hub_folder.released_to_fla(flat)
    back = fla_to_released({name.removeprefix("model."): array for name, array in there.items()})
    same_bits(params_to_flat(flat_to_params(back)), flat)


def test_a_folder_is_read_back_as_it_was(tmp_path, make_flat, same_bits):
    flat = make_flat(HUB)
    write(tmp_path / "deep" / "model", flat, **{"tokenizer.json": "{}"})
    folder = tmp_path / "deep" / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "modeling_rwkv7.py", "tokenizer.json"
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    found = load(folder)
    assert found.config == HUB
    same_bits(params_to_flat(found.params), flat)
    assert found.report.weights_hash == safetensors.read_described(folder).metadata["weights_hash"]
    compile((folder / "modeling_rwkv7.py").read_text(encoding="utf-8"), "modeling_rwkv7.py", "exec")


def test_settings_are_flas(make_flat, tmp_path):
    write(tmp_path / "model", make_flat(HUB))
    settings = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    wanted = {
        "model_type": "rwkv7", "hidden_size": 64, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 64,
        "decay_low_rank_dim": 5, "gate_low_rank_dim": 6, "a_low_rank_dim": 3, "v_low_rank_dim": 2, "vocab_size": 11,
        "value_dim": [64, 64], "norm_eps": 1e-5, "eos_token_id": 0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert settings | wanted == settings
    assert settings["auto_map"]["AutoModelForCausalLM"] == "modeling_rwkv7.RWKV7ForCausalLM"


def test_what_cannot_be_written_leaves_nothing(tmp_path, make_flat, one_line_error, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine", encoding="utf-8")
    with one_line_error("exists and is not an empty folder"):
        write(tmp_path / "mine", make_flat(HUB))
    with one_line_error("heads of 4: flash-linear-attention scales the epsilon"):
        write(tmp_path / "small", make_flat(), RWKV7Config(11, 3, 12, head_size=4))
    with one_line_error("blocks.0.ffn2.key: flash-linear-attention has no such tensor"):
        hub_folder.released_to_fla({"blocks.0.ffn2.key": np.zeros(3)})
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(hub_folder, "write_text", fail)
        with pytest.raises(type(error), match="No space" if error.args else "^$"):
            write(tmp_path / "model", make_flat(HUB))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    monkeypatch.undo()
    write(tmp_path / "empty", make_flat(HUB))
    assert load(tmp_path / "empty").config == HUB
