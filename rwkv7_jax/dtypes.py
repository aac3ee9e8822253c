"""The dtypes that a device computes in fastest, and weights put on the devices in them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
from jaxtyping import Array, PyTree

from rwkv7_jax import sharding
from rwkv7_jax.config import RWKV7Config


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


def compute_name(config: RWKV7Config) -> str:
    """Returns the dtypes and the device in words."""
    name = config.dtype
    if config.activation_dtype != config.dtype:
        name = f"{config.dtype} matrices and {config.activation_dtype} activations"
    return f"{name} on {jax.default_backend()}"


def is_matrix(at: Sequence[PyTree]) -> bool:
    """Returns whether the weight at this path of the tree is a matrix of a linear layer or embedding."""
    names = [str(getattr(key, "key", key)) for key in at]
    return names[-1] == "weight" and not names[-2].startswith("ln")


def placed(params: PyTree, dtype: str) -> PyTree:
    """Weights on the devices of the mesh that is set. To bfloat16 only matrices are cast: norms, decays and mixing
    vectors keep their dtype."""
    mesh = jax.sharding.get_mesh()
    spread = None if mesh.empty else sharding.shardings(params, mesh)

    def one(at: Sequence[PyTree], leaf: PyTree, where: PyTree = None) -> Array:
        return sharding.place(leaf, where, dtype if dtype == "float32" or is_matrix(at) else None)

    return jax.tree_util.tree_map_with_path(one, params, *([spread] if spread else []))
