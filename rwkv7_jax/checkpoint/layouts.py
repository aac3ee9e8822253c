"""Key layouts of other tools -> released names.

    released      blocks.{i}.att.receptance.weight                  BlinkDL/RWKV-LM
    transformers  rwkv7.blocks.{i}.att.receptance.weight            official Hugging Face checkpoints of 2026
    fla           model.layers.{i}.attn.r_proj.weight               flash-linear-attention, `RWKV7ForCausalLM`

Sources: huggingface/transformers pull request 47780, fla-org/flash-linear-attention `utils/convert_from_rwkv7.py`.
The two blocks of names also occur with fla's names for embedding, last norm and head (`rwkv7.embeddings.weight`).
Whatever stands before `blocks.` in every name is dropped (`module.`, `model.`, `base_model.model.`), and so are
wrappers of single modules (`blocks.0._orig_mod.att...`).
"""

import re
from collections.abc import Mapping

import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError
from rwkv7_jax.checkpoint.lazy import Tensor

INNER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")
"""Of torch.compile, FSDP, activation checkpointing and PEFT; they wrap any module."""
BODY = re.compile(r"(?:blocks|layers)\.\d")
MOST_WRAPPERS = 8
HEADS = ("head.", "lm_head.")
FLA_TOP = {
    "embeddings.weight": "emb.weight",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
FLA_PARTS = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn": "att", "ffn": "ffn"}
FLA_ATTENTION = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output", "g_norm": "ln_x"}
NORM_EPSILON = 1e-5
FOLD_SCALE = 2.0**-30
FLA_LORA = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}


def to_released(flat: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Returns (tensors by released name, name of the layout found); views whose shapes may differ by unit axes.

    Raises:
      CheckpointError: two names of the file mean the same tensor.
    """
    names, dropped = _strip_prefixes(list(flat))
    tensors = dict(zip(names, flat.values(), strict=True))
    if len(tensors) != len(flat):
        raise CheckpointError("two tensors have the same name once wrapper prefixes are dropped; remove one of them")
    if any(re.match(r"layers\.\d+\.attn(_norm)?\.", name) for name in tensors):
        return fla_to_released(tensors), "fla"
    renamed = {FLA_TOP.get(name, name): array for name, array in tensors.items()}
    if len(renamed) != len(tensors):
        raise CheckpointError("embedding, last norm or head are there under two names; remove one of them")
    return renamed, "transformers" if "rwkv7." in dropped else "released"


def fla_to_released(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames fla's tensors (names without `model.`); transposes LoRA matrices, which fla keeps as Linear weights.

    A name that has no counterpart is kept, so that the check for unknown tensors can name it.
    """
    out = {}
    for name, array in tensors.items():
        if name.endswith(".attn.x_x"):  # version 1 of fla's layer stacked the six mixes in this order
            prefix = _fla_name(name)[0].removesuffix("x_x")
            out |= {f"{prefix}x_{c}": row for c, row in zip("rwkvag", _six(name, array), strict=True)}
            continue
        released, transposed = _fla_name(name)
        out[released] = array.T if transposed else array
    return out


def without_wrappers(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors by names without the wrapper prefixes that every name carries."""
    return dict(zip(_strip_prefixes(list(flat))[0], flat.values(), strict=True))


def is_folded(flat: Mapping[str, Tensor]) -> bool:
    """Tells whether layer 0 lacks the norm of the embedding alone: files whose embedding went through it already."""
    norms = [f"blocks.0.ln{i}.{part}" for i in range(3) for part in ("weight", "bias")]
    return "emb.weight" in flat and [name in flat for name in norms] == [False] * 2 + [True] * 4


def unfold(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors of the same model with a norm that leaves an already normalised embedding as it is.

    A norm of weight 1 and bias 0 would normalise a second time. With a scale s so small that the variance of s x
    vanishes against epsilon, LN(s x) sqrt(epsilon) / s = x - mean(x) within float32's rounding, and the mean over the
    channels is what each norm that reads the residual stream subtracts. s is a power of two, so that s x is exact.
    """
    emb = np.asarray(flat["emb.weight"])
    wide = emb.astype(np.float32) if emb.dtype == np.float16 else emb
    weight = np.full(emb.shape[-1], np.sqrt(NORM_EPSILON) / FOLD_SCALE, np.float32)
    scaled = wide * np.asarray(FOLD_SCALE, wide.dtype)
    return {**flat, "emb.weight": scaled, "blocks.0.ln0.weight": weight, "blocks.0.ln0.bias": np.zeros_like(weight)}


def _fla_name(name: str) -> tuple[str, bool]:
    """(released name, whether the matrix is transposed) of one fla name."""
    if name in FLA_TOP:
        return FLA_TOP[name], False
    match = re.fullmatch(r"layers\.(\d+)\.([a-z_]+)\.(.+)", name)
    if not match or match[2] not in FLA_PARTS:
        return name, False
    prefix, rest = f"blocks.{int(match[1])}.{FLA_PARTS[match[2]]}.", match[3]
    if match[2] != "attn":
        return prefix + rest, False
    if lora := re.fullmatch(r"([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)", rest):
        return prefix + lora[1] + FLA_LORA[lora[2]], lora[2] != "2.bias"
    head, _, tail = rest.partition(".")
    return prefix + ".".join(part for part in (FLA_ATTENTION.get(head, head), tail) if part), False


def _six(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim < 2 or array.shape[0] != 6:
        raise CheckpointError(f"{name} has shape {list(array.shape)}, expected [6, D] (r, w, k, v, a, g)")
    return array.reshape(6, -1)


def _strip_prefixes(names: list[str]) -> tuple[list[str], set[str]]:
    """Drop wrappers anywhere, and prefixes that every name carries (the head may stand outside)."""
    names, dropped = [INNER.sub("", name) for name in names], set()
    for _ in range(MOST_WRAPPERS):
        body = [name for name in names if not name.startswith(HEADS)]
        prefix = body[0][: body[0].find(".") + 1] if body else ""
        inside = any(BODY.search(name, len(prefix)) for name in body)
        if not prefix or BODY.match(body[0]) or not inside or not all(name.startswith(prefix) for name in body):
            break
        dropped.add(prefix)
        names = [name.removeprefix(prefix) for name in names]
    return names, dropped
