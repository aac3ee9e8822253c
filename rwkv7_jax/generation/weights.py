"""Weights as decoding reads them fastest: cast once, and laid out for products with few rows."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rwkv7_jax import huge_pages, streamed
from rwkv7_jax.checkpoint.files import BFLOAT16
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import LORA, TRANSPOSED
from rwkv7_jax.model import RWKV7, unstack_blocks
from rwkv7_jax.quantisation import QuantisedWeight
from rwkv7_jax.streamed import StreamedWeight

Make = Callable[[PyTree, np.dtype, bool], PyTree]
"""(a leaf, its dtype in decoding, whether it is transposed) -> what stands for it."""


def for_decoding(model: RWKV7, params: dict, *, few_rows: bool = False) -> tuple[RWKV7, Params]:
    """Returns the same model in the form that is fastest token by token.

    Layers stand one by one; weights lie on the device, cast to the dtypes in which they are used, but the embedding, of
    which few rows are read. On a CPU matrices lie for the kernels of `rwkv7_jax.streamed` if these are there and fit,
    those of a bfloat16 file as bfloat16 for float32 too: the kernels multiply the same numbers. Else float32 matrices
    of linear layers lie as [in, out], but with `few_rows` those with as many inputs as outputs or more. Both forms take
    any number of rows.

    Args:
      model: the model's description.
      params: its weights, blocks stacked or not; they are copied where their form changes.
      few_rows: make few sequences fastest, see `few`, not many side by side.

    Returns:
      (model with `scan_layers` False, its weights).
    """
    model, params = one_by_one(model, params)
    return model, decoding_weights(model.config, params, few_rows=few_rows)


def few(rows: int) -> bool:
    """Returns whether so many rows are fastest with `for_decoding(few_rows=True)`."""
    return rows == 1 or (rows <= streamed.FEW_ROWS and streamed.available())


def one_by_one(model: RWKV7, params: dict) -> tuple[RWKV7, Params]:
    """Returns the same model with its layers one by one."""
    if not model.config.scan_layers:
        return model, params
    return RWKV7(dataclasses.replace(model.config, scan_layers=False)), unstack_blocks(params)


def decoding_weights(config: RWKV7Config, params: Params, *, few_rows: bool = False) -> Params:
    """Returns unstacked weights for decoding, see `for_decoding`; what has the right form already is not copied,
    but out of files where `huge_pages` are used."""
    parts = _made(config, params, few_rows, _Wanted)
    made = {name: _cast(part) for name, part in parts.items()}
    read = huge_pages.out_of_files({name: part for name, part in made.items() if name != "emb"})
    huge_pages.use(read)
    return made | read


def decoding_shapes(config: RWKV7Config, params: Params, *, few_rows: bool = False) -> Params:
    """Returns the shapes of what `decoding_weights` returns; no weight is read."""
    return _made(config, params, few_rows, _shape)


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


def _made(config: RWKV7Config, params: Params, few_rows: bool, make: Make) -> Params:
    form = _Form(config, few_rows, jax.default_backend() == "cpu", streamed.available(), make)
    return {name: _as_it_is(part, make) if name == "emb" else form.part(part) for name, part in params.items()}


def _as_it_is(tree: PyTree, make: Make) -> PyTree:
    return jax.tree.map(lambda leaf: make(leaf, leaf.dtype, False), tree)


@dataclasses.dataclass(frozen=True)
class _Form:
    """How weights lie for decoding."""

    config: RWKV7Config
    few_rows: bool
    cpu: bool
    streams: bool
    """Whether there are kernels that read rows of [out, in] in order."""
    make: Make

    def part(self, tree: dict[str, PyTree]) -> dict[str, PyTree]:
        """Returns a dictionary of weights in decoding form; arrays and matrices alone change."""
        found, products = {}, np.dtype(self.config.dtype)
        for name, value in tree.items():
            is_array = isinstance(value, np.ndarray | jax.Array)
            if isinstance(value, dict):
                found[name] = self.part(value)
            elif is_array and (value.ndim == 1 or name == "r_k"):
                found[name] = self.make(value, _vectors(self.config, value), False)
            elif name in ("weight", TRANSPOSED):
                found |= self.linear(value, name == TRANSPOSED)
            elif name in LORA:
                found[name] = self.lora(value)
            else:
                found[name] = self.make(value, products, False) if is_array else _as_it_is(value, self.make)
        return found

    def linear(self, value: PyTree, transposed: bool) -> dict[str, PyTree]:
        """Returns a linear layer's matrix under its name; `transposed`: it is given as [in, out]."""
        matrix = value.matrix if isinstance(value, StreamedWeight) else value
        if isinstance(matrix, QuantisedWeight):
            made = _as_it_is(matrix, self.make)
            kind = streamed.kind(StreamedWeight(matrix))
            streams = self.streams and streamed.fits(matrix.shape, kind, matrix.scales.shape[-1])
            return {"weight": StreamedWeight(made) if streams else made}
        outputs, inputs = matrix.shape[::-1] if transposed else matrix.shape
        if self.streamed(outputs, inputs):
            return {"weight": StreamedWeight(self.make(matrix, self.kept(matrix), transposed))}
        # A CPU multiplies float32 rows by [in, out] fastest, a single row by a square or wide matrix as [out, in].
        turned = self.config.dtype == "float32" and self.cpu and not (self.few_rows and inputs >= outputs)
        name = TRANSPOSED if turned else "weight"
        return {name: self.make(matrix, np.dtype(self.config.dtype), transposed != turned)}

    def lora(self, value: PyTree) -> PyTree:
        """Returns a LoRA matrix, [in, out] unless it is streamed."""
        given = isinstance(value, StreamedWeight)
        matrix = value.matrix if given else value
        outputs, inputs = matrix.shape if given else matrix.shape[::-1]
        streams = self.few_rows and self.streamed(outputs, inputs)
        made = self.make(matrix, self.kept(matrix) if streams else np.dtype(self.config.dtype), given != streams)
        return StreamedWeight(made) if streams else made

    def streamed(self, outputs: int, inputs: int) -> bool:
        """Returns whether a matrix of floats is streamed, float32 only for few rows."""
        kind = self.config.dtype
        return self.streams and (self.few_rows or kind != "float32") and streamed.fits((outputs, inputs), kind)

    def kept(self, matrix: PyTree) -> np.dtype:
        """Returns the dtype of a streamed matrix: bfloat16 numbers stay such, also to be multiplied in float32."""
        products = np.dtype(self.config.dtype)
        return BFLOAT16 if products != BFLOAT16 and _all_bfloat16(matrix) else products


def _all_bfloat16(matrix: PyTree) -> bool:
    """Whether a matrix holds bfloat16 numbers: of one that is loaded the numbers tell, of one in a file its dtype."""
    if matrix.dtype == np.float32 and isinstance(matrix, jax.Array):
        bits = np.asarray(matrix).view(np.uint32).ravel()
        return not np.bitwise_or.reduce(bits) & 0xFFFF
    return matrix.dtype == BFLOAT16


def _vectors(config: RWKV7Config, value: np.ndarray | Array) -> np.dtype:
    """float32 activations meet float32 vectors; others keep their dtype, since some are used in float32 alone."""
    return np.dtype("float32") if config.activation_dtype == "float32" else value.dtype
