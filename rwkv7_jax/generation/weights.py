"""Weights as decoding reads them fastest: cast once, and laid out for products with few rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import TRANSPOSED

Make = Callable[[PyTree, np.dtype, bool], PyTree]
"""(a leaf, its dtype in decoding, whether it is transposed) -> what stands for it."""


def decoding_weights(config: RWKV7Config, params: Params, *, one_row: bool = False) -> Params:
    """Returns unstacked weights for decoding, see `for_decoding`; what has the right form already is not copied."""
    return _made(config, params, one_row, _array)


def decoding_shapes(config: RWKV7Config, params: Params, *, one_row: bool = False) -> Params:
    """Returns the shapes of what `decoding_weights` returns; no weight is read."""
    return _made(config, params, one_row, _shape)


def _array(leaf: PyTree, dtype: np.dtype, transposed: bool) -> PyTree:
    found = jnp.asarray(leaf, dtype)
    return found.T if transposed else found


def _shape(leaf: PyTree, dtype: np.dtype, transposed: bool) -> PyTree:
    return jax.ShapeDtypeStruct(leaf.shape[::-1] if transposed else leaf.shape, dtype)


def _made(config: RWKV7Config, params: Params, one_row: bool, make: Make) -> Params:
    def lies_transposed(outputs: int, inputs: int) -> bool:
        """A CPU multiplies float32 rows by [in, out] fastest, a single row by a wide matrix as [out, in]."""
        cpu = config.dtype == "float32" and jax.default_backend() == "cpu"
        return cpu and not (one_row and inputs > outputs)

    return {
        name: _as_it_is(part, make) if name == "emb" else _part(config, part, lies_transposed, make)
        for name, part in params.items()
    }


def _as_it_is(tree: PyTree, make: Make) -> PyTree:
    return jax.tree.map(lambda leaf: make(leaf, leaf.dtype, False), tree)


def _part(
    config: RWKV7Config, tree: dict[str, PyTree], lies_transposed: Callable[[int, int], bool], make: Make
) -> dict[str, PyTree]:
    """Returns a dictionary of weights in decoding form; other values than arrays and dictionaries stay as they are."""
    found, products = {}, np.dtype(config.dtype)
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = _part(config, value, lies_transposed, make)
        elif not isinstance(value, np.ndarray | jax.Array):
            found[name] = _as_it_is(value, make)
        elif value.ndim == 1 or name == "r_k":
            found[name] = make(value, _vectors(config, value), False)
        elif name in ("weight", TRANSPOSED):
            given = name == TRANSPOSED
            wanted = lies_transposed(*(value.shape[::-1] if given else value.shape))
            found[TRANSPOSED if wanted else "weight"] = make(value, products, given != wanted)
        else:
            found[name] = make(value, products, False)
    return found


def _vectors(config: RWKV7Config, value: np.ndarray | Array) -> np.dtype:
    """float32 activations meet float32 vectors; others keep their dtype, since some are used in float32 alone."""
    return np.dtype("float32") if config.activation_dtype == "float32" else value.dtype
