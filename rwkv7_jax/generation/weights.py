"""Weights as decoding reads them fastest: cast once, and laid out for products with few rows."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import TRANSPOSED
from rwkv7_jax.model import RWKV7, unstack_blocks

Make = Callable[[PyTree, np.dtype, bool], PyTree]
"""(a leaf, its dtype in decoding, whether it is transposed) -> what stands for it."""


def for_decoding(model: RWKV7, params: dict, *, one_row: bool = False) -> tuple[RWKV7, Params]:
    """Returns the same model in the form that is fastest token by token.

    Layers stand one by one; weights lie on the device, cast to the dtypes in which they are used, but the embedding, of
    which few rows are read; on a CPU float32 matrices of linear layers lie as [in, out], but with `one_row` those with
    as many inputs as outputs or more. Both forms take any number of rows.

    Args:
      model: the model's description.
      params: its weights, blocks stacked or not; they are copied where their form changes.
      one_row: make a single sequence fastest, not several side by side.

    Returns:
      (model with `scan_layers` False, its weights).
    """
    model, params = one_by_one(model, params)
    return model, decoding_weights(model.config, params, one_row=one_row)


def one_by_one(model: RWKV7, params: dict) -> tuple[RWKV7, Params]:
    """Returns the same model with its layers one by one."""
    if not model.config.scan_layers:
        return model, params
    return RWKV7(dataclasses.replace(model.config, scan_layers=False)), unstack_blocks(params)


def decoding_weights(config: RWKV7Config, params: Params, *, one_row: bool = False) -> Params:
    """Returns unstacked weights for decoding, see `for_decoding`; what has the right form already is not copied."""
    parts = _made(config, params, one_row, _Wanted)
    return {name: _cast(part) for name, part in parts.items()}


def decoding_shapes(config: RWKV7Config, params: Params, *, one_row: bool = False) -> Params:
    """Returns the shapes of what `decoding_weights` returns; no weight is read."""
    return _made(config, params, one_row, _shape)


class _Wanted(NamedTuple):
    leaf: Array | np.ndarray
    dtype: np.dtype
    transposed: bool

    @property
    def changes(self) -> bool:
        """Whether the leaf has another form."""
        return self.transposed or self.leaf.dtype != self.dtype


def _cast(part: PyTree[_Wanted]) -> PyTree:
    """Casts and transposes in one program, which all layers share; what has the right form is put on the device."""
    leaves, tree = jax.tree.flatten(part, is_leaf=lambda leaf: isinstance(leaf, _Wanted))
    changed = [one for one in leaves if one.changes]
    forms = tuple((one.dtype, one.transposed) for one in changed)
    made = iter(_in_form([one.leaf for one in changed], forms) if changed else [])
    return tree.unflatten([next(made) if one.changes else jnp.asarray(one.leaf) for one in leaves])


@partial(jax.jit, static_argnums=1)
def _in_form(leaves: list[Array | np.ndarray], forms: tuple[tuple[np.dtype, bool], ...]) -> list[Array]:
    return [
        (jnp.asarray(leaf).T if transposed else jnp.asarray(leaf)).astype(dtype)
        for leaf, (dtype, transposed) in zip(leaves, forms, strict=True)
    ]


def _shape(leaf: PyTree, dtype: np.dtype, transposed: bool) -> PyTree:
    return jax.ShapeDtypeStruct(leaf.shape[::-1] if transposed else leaf.shape, dtype)


def _made(config: RWKV7Config, params: Params, one_row: bool, make: Make) -> Params:
    def lies_transposed(outputs: int, inputs: int) -> bool:
        """A CPU multiplies float32 rows by [in, out] fastest, a single row by a square or wide matrix as [out, in]."""
        cpu = config.dtype == "float32" and jax.default_backend() == "cpu"
        return cpu and not (one_row and inputs >= outputs)

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
