"""The official initialisation for training from scratch (RWKV-LM, RWKV-v7/train_temp/src/model.py).

Each function returns float32 arrays for one layer of `n_layer`; `layer_id` counts from 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[..., Array]


def constant(value: Float[Array, "..."]) -> Initializer:
    """An initialiser that ignores its key and returns `value`."""
    return lambda key, shape: jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def orthogonal(gain: float) -> Initializer:
    """Orthogonal matrix times `gain`, with the official extra factor sqrt(rows / columns) for tall matrices."""

    def init(key, shape):
        rows, columns = shape
        scale = gain * max(1.0, (rows / columns) ** 0.5)
        return jax.nn.initializers.orthogonal(scale)(key, shape, jnp.float32)

    return init


def zeros(key, shape) -> Array:
    return jnp.zeros(shape, jnp.float32)


def ones(key, shape) -> Array:
    return jnp.ones(shape, jnp.float32)


def lerp(width: int, power: float) -> Initializer:
    """Token-shift interpolation `1 - (i / D) ** power`."""
    return constant(1.0 - (jnp.arange(width, dtype=jnp.float32) / width) ** power)


def linear_ramp(width: int) -> Float[Array, "D"]:
    """From -1/2 to 1/2 over the channels."""
    return jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1) - 0.5


def zigzag(width: int, head_size: int) -> Float[Array, "D"]:
    """Signed square of a ramp from -1 to 1 within each head."""
    half = max(head_size - 1, 1) / 2
    ramp = (jnp.arange(width, dtype=jnp.float32) % head_size - half) / half
    return ramp * jnp.abs(ramp)


def decay_bias(width: int, head_size: int, depth: float) -> Float[Array, "D"]:
    """w0: slow to fast channels, `depth` in [0, 1] bending the ramp; 0.5 offsets the softplus of the original form."""
    ramp = jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1)
    return -6.0 + 6.0 * ramp ** (1.0 + depth**0.3) + 0.5 + 2.5 * zigzag(width, head_size)
