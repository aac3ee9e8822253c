"""The dtypes that a device computes in fastest, and weights put on the devices in them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, PyTree

from rwkv7_jax import sharding
from rwkv7_jax.checkpoint.names import Stacked
from rwkv7_jax.checkpoint.quantised_file import StoredMatrix, stored
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.quantisation import Bits, QuantisedWeight

Quantise = Literal["auto", "none", "int8", "int4"]
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}


def compute_dtype(dtype: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """Returns the compute dtype that "auto" stands for: float32 on a CPU, bfloat16 elsewhere."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def on_device(config: RWKV7Config, dtype: Literal["auto", "float32", "bfloat16"]) -> RWKV7Config:
    """Returns the config with the dtypes that `dtype` stands for on the default device: on a CPU bfloat16 products are
    beside float32 activations."""
    chosen = compute_dtype(dtype)
    mixed = chosen == "bfloat16" and jax.default_backend() == "cpu"
    return dataclasses.replace(config, dtype=chosen, activations="float32" if mixed else None)


def compute_name(config: RWKV7Config, params: PyTree) -> str:
    """Returns the dtypes and the device in words."""
    bits = quantised_bits(params)
    name, matrices = config.dtype, bits or config.dtype
    if matrices != config.activation_dtype:
        products = f", {config.dtype} products" if bits and config.dtype != config.activation_dtype else ""
        name = f"{matrices} matrices{products} and {config.activation_dtype} activations"
    return f"{name} on {jax.default_backend()}"


def is_matrix(at: Sequence[PyTree]) -> bool:
    """Returns whether the weight at this path of the tree is a matrix of a linear layer or embedding."""
    names = _names(at)
    return names[-1] == "weight" and not names[-2].startswith("ln")


def is_linear(at: Sequence[PyTree]) -> bool:
    """Returns whether the weight at this path of the tree is a matrix that may be quantised."""
    return is_matrix(at) and _names(at)[0] != "emb"


def quantised_bits(params: PyTree) -> str:
    """Returns "int8" or "int4" for quantised weights, "" for others."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QuantisedWeight))
    return " ".join(sorted({f"int{leaf.bits}" for leaf in leaves if isinstance(leaf, QuantisedWeight)}))


def quantised(params: PyTree, quantise: Quantise) -> PyTree:
    """Returns weights of which the matrices of linear layers are quantised on the host, a layer at a time.

    Args:
      params: as `checkpoint.load(lazy=True)` returns them.
      quantise: "int8" or "int4"; "auto" keeps what the file holds; "none" quantises nothing.

    Raises:
      ValueError: one line, for a matrix that cannot be quantised.
    """
    bits = BITS.get(quantise)

    def one(at: Sequence[PyTree], leaf: PyTree) -> PyTree:
        layers = leaf.layers if isinstance(leaf, Stacked) else [leaf]
        kept = quantise == "auto" and isinstance(layers[0], StoredMatrix)
        if not is_linear(at) or not (bits or kept):
            return leaf
        try:
            found = [stored(layer, bits) for layer in layers]
        except ValueError as error:
            raise ValueError(f"{'.'.join(_names(at))}: {error}") from None
        if not isinstance(leaf, Stacked):
            return found[0]
        return QuantisedWeight(*(np.stack([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True)))

    return jax.tree_util.tree_map_with_path(one, params)


def placed(params: PyTree, dtype: str) -> PyTree:
    """Weights on the devices of the mesh that is set. To bfloat16 only matrices are cast: norms, decays and mixing
    vectors keep their dtype, and so do the numbers of quantised weights."""
    mesh = jax.sharding.get_mesh()
    spread = None if mesh.empty else sharding.shardings(params, mesh)

    def one(at: Sequence[PyTree], leaf: PyTree, where: PyTree = None) -> Array:
        cast = _names(at)[-1] not in QuantisedWeight._fields and (dtype == "float32" or is_matrix(at))
        return sharding.place(leaf, where, dtype if cast else None)

    return jax.tree_util.tree_map_with_path(one, params, *([spread] if spread else []))


def _names(at: Sequence[PyTree]) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", key))) for key in at]
