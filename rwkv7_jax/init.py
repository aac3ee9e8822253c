"""The official initialisation for training from scratch (RWKV-LM, RWKV-v7/train_temp/src/model.py).

Each function returns float32 arrays for one layer of `n_layer`; `layer_id` counts from 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[..., Array]


def constant(value: Float[Array, "..."]) -> Initializer:
    """Returns an initialiser that ignores its key and returns `value`."""
    return lambda key, shape: jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape)


def uniform(bound: float) -> Initializer:
    """Returns an initialiser that draws from U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def orthogonal(gain: float) -> Initializer:
    """Returns an initialiser of orthogonal matrices times `gain`; tall ones also times sqrt(rows / columns)."""

    def init(key: Array, shape: tuple[int, int]) -> Array:
        rows, columns = shape
        scale = gain * max(1.0, (rows / columns) ** 0.5)
        return jax.nn.initializers.orthogonal(scale)(key, shape, jnp.float32)

    return init


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns float32 zeros."""
    return jnp.zeros(shape, jnp.float32)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns float32 ones."""
    return jnp.ones(shape, jnp.float32)


def lerp(width: int, power: float) -> Initializer:
    """Returns an initialiser of the token-shift interpolation `1 - (i / D) ** power`."""
    return constant(1.0 - (jnp.arange(width, dtype=jnp.float32) / width) ** power)


def linear_ramp(width: int) -> Float[Array, "D"]:
    """Returns a ramp from -1/2 to 1/2 over the channels."""
    return jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1) - 0.5


def zigzag(width: int, head_size: int) -> Float[Array, "D"]:
    """Returns the signed square of a ramp from -1 to 1 within each head."""
    half = max(head_size - 1, 1) / 2
    ramp = (jnp.arange(width, dtype=jnp.float32) % head_size - half) / half
    return ramp * jnp.abs(ramp)


def decay_bias(width: int, head_size: int, depth: float) -> Float[Array, "D"]:
    """Returns w0: slow to fast channels, bent by `depth` in [0, 1]; 0.5 offsets the original form's softplus."""
    ramp = jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1)
    return -6.0 + 6.0 * ramp ** (1.0 + depth**0.3) + 0.5 + 2.5 * zigzag(width, head_size)
