"""Weights as decoding reads them fastest: cast once, and laid out for products with few rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import TRANSPOSED


def decoding_weights(config: RWKV7Config, params: Params) -> Params:
    """Returns unstacked weights for decoding, see `for_decoding`; what has the right form already is not copied."""
    transposed = config.dtype == "float32" and jax.default_backend() == "cpu"
    return {
        name: jax.tree.map(jnp.asarray, part) if name == "emb" else _part(config, part, transposed)
        for name, part in params.items()
    }


def _part(config: RWKV7Config, tree: dict[str, PyTree], transposed: bool) -> dict[str, PyTree]:
    """Returns a dictionary of weights in decoding form; other values than arrays and dictionaries stay as they are."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = _part(config, value, transposed)
        elif not isinstance(value, np.ndarray | jax.Array):
            found[name] = jax.tree.map(jnp.asarray, value)
        elif value.ndim == 1 or name == "r_k":
            found[name] = jnp.asarray(value, _vectors(config, value))
        elif name == "weight" and transposed:
            found[TRANSPOSED] = jnp.asarray(value, config.dtype).T
        else:
            found[name] = jnp.asarray(value, config.dtype)
    return found


def _vectors(config: RWKV7Config, value: np.ndarray | Array) -> np.dtype:
    """float32 activations meet float32 vectors; others keep their dtype, since some are used in float32 alone."""
    return np.dtype("float32") if config.activation_dtype == "float32" else value.dtype
