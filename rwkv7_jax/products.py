"""Products of activations with weights, in the dtype of the weights and added up in float32."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(spec: str, x: Float[Array, "*B D"], weight: Float[Array, "_ _"], dtype: DTypeLike) -> Float[Array, "*B O"]:
    """Returns einsum(spec, x, weight) in the dtype of x.

    Where both are computed in one dtype the sums are those of the device: float32, on GPU and TPU for bfloat16 too.
    float32 activations beside bfloat16 products, the form for a CPU, are rounded for the product alone and added up in
    float32; so is the gradient.

    Args:
      spec: "...d,od->...o" or "...d,do->...o", for any two letters d and o.
      x: activations.
      weight: a matrix of any floating dtype.
      dtype: what the factors are rounded to.
    """
    weight = weight.astype(dtype)
    return jnp.einsum(spec, x, weight) if x.dtype == weight.dtype else _mixed(spec, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mixed(spec: str, x: Float[Array, "*B D"], weight: Float[Array, "_ _"]) -> Float[Array, "*B O"]:
    rounded = x.astype(weight.dtype)
    if x.size != x.shape[-1]:
        return jnp.einsum(spec, rounded, weight, preferred_element_type=jnp.float32).astype(x.dtype)
    # XLA multiplies a single row in bfloat16 by a plain loop on CPU; two rows are 15 times as fast.
    twice = jnp.broadcast_to(rounded.reshape(1, -1), (2, x.shape[-1]))
    y = jnp.einsum(spec.replace("...", "n"), twice, weight, preferred_element_type=jnp.float32)
    return y[:1].reshape(*x.shape[:-1], -1).astype(x.dtype)


def _mixed_forward(spec: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mixed(spec, x, weight), (x, weight)


def _mixed_backward(spec: str, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = residuals
    given, out = spec.split("->")
    left, right = given.split(",")
    to_weight = jnp.einsum(
        f"{left.replace('...', 'n')},{out.replace('...', 'n')}->{right}",
        x.reshape(-1, x.shape[-1]),
        cotangent.reshape(-1, cotangent.shape[-1]),
    )
    return jnp.asarray(_mixed(f"{out},{right}->{left}", cotangent, weight), x.dtype), to_weight.astype(weight.dtype)


_mixed.defvjp(_mixed_forward, _mixed_backward)
