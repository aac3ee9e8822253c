"""An optimiser whose learning rate is part of its state: one compiled step serves every rate and schedule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


class Rated(NamedTuple):
    """State of `rated`."""

    inner: optax.OptState
    rate: Float[Array, ""]


def rated(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with its updates multiplied by `Rated.rate`, 1 at start. For an Adam of rate 1 that is its learning rate.

    Right-preconditioning is linear in the update, so the same holds for an Adam inside `dbp.decorrelated`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Rated:
        return Rated(inner.init(params), jnp.ones((), jnp.float32))

    def update(updates, state: Any, params=None, **extra):
        updates, kept = inner.update(updates, state.inner, params, **extra)
        return jax.tree.map(lambda u: u * state.rate.astype(u.dtype), updates), Rated(kept, state.rate)

    return optax.GradientTransformationExtraArgs(init, update)


def set_rate(state: Any, rate: float) -> Rated:
    """The optimiser state with another rate."""
    return state._replace(rate=jnp.asarray(rate, jnp.float32))
