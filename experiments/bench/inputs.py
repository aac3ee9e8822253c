"""What every measured process runs on: shapes, a random checkpoint, and the same pseudo-text."""

from functools import partial
from pathlib import Path
from typing import Any

PREFILL, TUNE, DECODE = 512, 512, 32
SHAPES: dict[str, dict[str, Any]] = {
    "0.1B": {"vocab_size": 65536, "n_layer": 12, "n_embd": 768},
    "tiny": {"vocab_size": 512, "n_layer": 2, "n_embd": 128},
}


def make_checkpoint(path: Path, shape: str) -> None:
    """A random model in BlinkDL's .pth layout (bfloat16), away from the zeros of the official initialisation."""
    import jax
    import ml_dtypes

    from rwkv7_jax.checkpoint import names, pth

    _, tree = drawn(shape)
    pth.write(path, names.params_to_flat(jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), tree)))


def random_weights(shape: str) -> tuple[Any, Any]:
    """(RWKV7Config, float32 parameters) of such a model."""
    import jax

    config, tree = drawn(shape)
    return config, jax.device_put(tree)


def drawn(shape: str) -> tuple[Any, Any]:
    """(RWKV7Config, float32 NumPy arrays)."""
    import jax
    import numpy as np

    from rwkv7_jax import RWKV7, RWKV7Config
    from rwkv7_jax.model import init_params

    config = RWKV7Config(**SHAPES[shape])
    tree = jax.eval_shape(partial(init_params, RWKV7(config)), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.2
        return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)

    return config, jax.tree.map(draw, tree)


def tokens(count: int, vocab: int) -> list[int]:
    """The same pseudo-text for everybody."""
    return [(7919 * i + 13) % (vocab - 1) + 1 for i in range(count)]
