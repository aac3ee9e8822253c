"""Random models of the benchmark's shapes, in memory and as a checkpoint."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from experiments.bench import gguf_file
from experiments.bench.inputs import SHAPES
from rwkv7_jax import RWKV7, RWKV7Config
from rwkv7_jax.checkpoint import names, pth
from rwkv7_jax.functional import Params
from rwkv7_jax.model import init_params


def make_checkpoint(path: Path, shape: str) -> None:
    """Writes a random model in BlinkDL's .pth layout (bfloat16), away from the zeros of the official initialisation."""
    _, params = drawn(shape)
    pth.write(path, names.params_to_flat(jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)))


def make_gguf(checkpoint: Path, shape: str, dtype: str, vocabulary: Sequence[bytes] | None = None) -> None:
    """Writes a file of `make_checkpoint` for llama.cpp beside it, at `gguf_file.beside`.

    Raises:
      ImportError: gguf is not installed.
    """
    config, path = RWKV7Config(*SHAPES[shape]), gguf_file.beside(checkpoint, dtype)
    gguf_file.write(path, config, pth.read(checkpoint), dtype, vocabulary)


def random_weights(shape: str) -> tuple[RWKV7Config, Params]:
    """Returns the config and float32 parameters of such a model on the default device."""
    config, params = drawn(shape)
    return config, jax.device_put(params)


def drawn(shape: str) -> tuple[RWKV7Config, Params]:
    """Returns the config and float32 parameters of such a model as NumPy arrays."""
    config = RWKV7Config(*SHAPES[shape])
    shapes = jax.eval_shape(partial(init_params, RWKV7(config)), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.2
        return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)

    return config, jax.tree.map(draw, shapes)
