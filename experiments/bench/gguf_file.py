"""A checkpoint as llama.cpp reads it: a GGUF file of the architecture `rwkv7`, written with the package `gguf`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rwkv7_jax import RWKV7Config

TYPES = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""Types of the embedding and of linear layers; everything else is float32, as llama.cpp's tools leave it."""
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Kinds of tokens."""
TOP = {"emb": "token_embd", "ln_out": "output_norm", "head": "output"}
LAYER = {
    "ln0": "token_embd_norm",
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    "ffn.x_k": "channel_mix_lerp_k",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
}
MIXED = tuple(f"att.x_{letter}" for letter in "rwkvag")
"""Vectors that the file holds as one tensor, in its order."""


def beside(checkpoint: Path, dtype: str) -> Path:
    """Returns the place of the file with matrices of a type, beside the checkpoint."""
    return checkpoint.with_suffix(f".{dtype}.gguf")


def write(
    path: Path,
    config: RWKV7Config,
    flat: Mapping[str, np.ndarray],
    dtype: str,
    vocabulary: Sequence[bytes] | None = None,
) -> None:
    """Writes a checkpoint of random weights.

    Args:
      path: the file.
      config: dimensions.
      flat: weights by their released names.
      dtype: of `TYPES`.
      vocabulary: the bytes of every token, of those that are not used b""; None: there is none, and no text.

    Raises:
      ImportError: gguf is not installed.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants  # pyright: ignore[reportMissingImports]

    writer = GGUFWriter(path, "rwkv7")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.dim_ffn or 4 * config.n_embd)
    writer.add_head_count(0)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(config.head_size)
    writer.add_decay_lora_rank(config.decay_lora)
    writer.add_iclr_lora_rank(config.aaa_lora)
    writer.add_value_residual_mix_lora_rank(config.mv_lora)
    writer.add_gate_lora_rank(config.gate_lora)
    writer.add_tokenizer_model("none" if vocabulary is None else "rwkv")
    writer.add_vocab_size(config.vocab_size)
    if vocabulary is not None:
        names, kinds = zip(*map(spelled, range(len(vocabulary)), vocabulary), strict=True)
        writer.add_token_list(list(names))
        writer.add_token_types(list(kinds))
        writer.add_eos_token_id(0)
    for name, tensor in tensors(flat, config.n_layer):
        linear = tensor.ndim == 2 and not name.endswith(("1.weight", "2.weight"))
        kind = GGMLQuantizationType[TYPES[dtype] if linear else "F32"]
        writer.add_tensor(name, quants.quantize(np.ascontiguousarray(tensor), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spelled(token: int, text: bytes) -> tuple[str, int]:
    """Returns how the file spells a token, bytes that are no ASCII escaped, and of what kind it is."""
    if token == 0:
        return "<s>", CONTROL
    return (repr(text)[2:-1], NORMAL) if text else (f"[PAD{token}]", UNUSED)


def tensors(flat: Mapping[str, np.ndarray], n_layer: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and float32 arrays of the file: LoRA matrices are [out, in] there, and mixing vectors one tensor."""
    for name, released in flat.items():
        part, tensor = name.split("."), np.asarray(released, np.float32)
        if part[0] != "blocks":
            yield f"{TOP[part[0]]}.{part[1]}", tensor
            continue
        layer, key = part[1], ".".join(part[2:4])
        suffix = part[-1] if part[-1] in ("weight", "bias") else "weight"
        key = key.removesuffix(f".{suffix}")
        if key in MIXED:
            continue
        if tensor.ndim == 3:
            tensor = tensor.reshape(-1)
        if key.startswith("att.") and key[-1] in "12":
            tensor = tensor.T
        if key == "att.r_k":
            tensor = tensor.reshape(-1)
        if key == "ffn.x_k":
            tensor = tensor.reshape(1, 1, -1)
        named = LAYER.get(key, key.replace("att.", "time_mix_"))
        yield f"{named}.{suffix}" if key == "ln0" else f"blk.{layer}.{named}.{suffix}", tensor
        if layer == "0" and key in ("att.a0", "att.a1", "att.a2"):
            # llama.cpp wants the first layer's v0, v1 and v2, which nothing reads.
            yield f"blk.0.time_mix_v{key[-1]}.weight", tensor
    for layer in range(n_layer):
        mixed = [np.asarray(flat[f"blocks.{layer}.{key}"], np.float32).reshape(1, 1, -1) for key in MIXED]
        yield f"blk.{layer}.time_mix_lerp_fused.weight", np.stack(mixed)
