"""Folders for the Hugging Face hub: weights under flash-linear-attention's names, config.json, tokenizer, card.

flash-linear-attention loads them (`RWKV7ForCausalLM`), transformers by way of it, and this project. Source of names and
settings: fla-org/flash-linear-attention (bc3b101), `utils/convert_from_rwkv7.py`, `fla/layers/rwkv7.py` and
`fla/models/rwkv7/`.
"""

import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping

import numpy as np

from rwkv7_jax.checkpoint import safetensors
from rwkv7_jax.checkpoint.files import CheckpointError, PathLike, naming, write_text
from rwkv7_jax.checkpoint.layouts import FLA_ATTENTION, FLA_LORA, FLA_PARTS, FLA_TOP, NORM_EPSILON
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.json_text import json_text

WEIGHTS = "model.safetensors"
MODELLING = "modeling_rwkv7"
CODE = '''"""The model's code is that of flash-linear-attention."""

from fla.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM, RWKV7Model

__all__ = ["RWKV7Config", "RWKV7ForCausalLM", "RWKV7Model"]
'''
_TOP = {released: name for name, released in FLA_TOP.items()}
_PARTS = {released: name for name, released in FLA_PARTS.items()}
_ATTENTION = {released: name for name, released in FLA_ATTENTION.items()}
_LORA = {released: name for name, released in FLA_LORA.items()}


def released_to_fla(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors of released names under fla's, in the shapes of its modules; the inverse of `fla_to_released`.

    Example:
      >>> names = released_to_fla({"blocks.1.att.w1": np.zeros((8, 2)), "head.weight": np.zeros((4, 8))})
      >>> {name: array.shape for name, array in names.items()}
      {'model.layers.1.attn.w_lora.lora.0.weight': (2, 8), 'lm_head.weight': (4, 8)}
    """
    return dict(_fla_tensor(name, array) for name, array in flat.items())


def _fla_tensor(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if name in _TOP:
        fla = _TOP[name]
        return (fla if fla.startswith("lm_head") else f"model.{fla}"), array
    match = re.fullmatch(r"blocks\.(\d+)\.([a-z0-9]+)\.(.+)", name)
    if match is None or match[2] not in _PARTS:
        raise CheckpointError(f"{name}: flash-linear-attention has no such tensor")
    prefix, rest = f"model.layers.{match[1]}.{_PARTS[match[2]]}.", match[3]
    if match[2] == "att" and (lora := re.fullmatch(r"([wavg])([012])", rest)):
        matrix = array.reshape(-1) if lora[2] == "0" else array.T
        return f"{prefix}{lora[1]}_lora.lora.{_LORA[lora[2]]}", matrix
    if match[2] == "att" and re.fullmatch(r"x_[rwkvag]", rest):
        return prefix + rest, array.reshape(1, 1, -1)
    head, dot, tail = rest.partition(".")
    if match[2] == "att":
        head = _ATTENTION.get(head, head)
    return prefix + head + dot + tail, array.reshape(-1) if array.ndim == 3 else array


def fla_config(config: RWKV7Config, dtype: str, eos_id: int) -> dict[str, object]:
    """Returns config.json for a model of these dimensions.

    Args:
      config: the dimensions.
      dtype: of the weights, as torch names it.
      eos_id: the token that ends a text.
    """
    code = {"AutoConfig": "RWKV7Config", "AutoModel": "RWKV7Model", "AutoModelForCausalLM": "RWKV7ForCausalLM"}
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "auto_map": {name: f"{MODELLING}.{kind}" for name, kind in code.items()},
        "model_type": "rwkv7",
        "attn_mode": "chunk",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "hidden_ratio": config.dim_ffn / config.n_embd,
        "intermediate_size": config.dim_ffn,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "num_heads": config.n_head,
        "value_dim": [config.n_embd] * config.n_layer,
        "decay_low_rank_dim": config.decay_lora,
        "gate_low_rank_dim": config.gate_lora,
        "a_low_rank_dim": config.aaa_lora,
        "v_low_rank_dim": config.mv_lora,
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": NORM_EPSILON,
        "fuse_norm": False,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }


def write(
    folder: PathLike,
    flat: Mapping[str, np.ndarray],
    config: RWKV7Config,
    *,
    weights_hash: str,
    eos_id: int,
    card: str,
    files: Mapping[str, pathlib.Path | str],
) -> None:
    """Writes a folder, which appears once all of it is there.

    Args:
      folder: its path; it must not be there yet, or be empty.
      flat: the weights by released name, of one dtype.
      config: their dimensions.
      weights_hash: of the weights, which `load` checks.
      eos_id: the token that ends a text.
      card: README.md.
      files: further files by name: paths to copy, or texts.

    Raises:
      CheckpointError: the folder holds something, or flash-linear-attention would compute something else: heads of a
        size whose group norm has another epsilon there.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; give another name, or remove it")
    if config.head_size != 64:
        raise CheckpointError(
            f"{folder}: heads of {config.head_size}: flash-linear-attention scales the epsilon of the group norm with "
            "them, and would compute something else; write a .safetensors or .pth file"
        )
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            dtype = str(flat["emb.weight"].dtype)
            metadata = {"format": "pt", "weights_hash": weights_hash}
            safetensors.write(part / WEIGHTS, released_to_fla(flat), metadata)
            write_text(part / "config.json", json_text(fla_config(config, dtype, eos_id), indent=2) + "\n")
            write_text(part / f"{MODELLING}.py", CODE)
            write_text(part / "README.md", card)
            for name, content in files.items():
                if isinstance(content, pathlib.Path):
                    shutil.copyfile(content, part / name)
                else:
                    write_text(part / name, content)
            part.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
