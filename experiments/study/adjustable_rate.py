"""An optimiser whose learning rate is part of its state: one compiled step serves every rate and schedule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


class AdjustableRateState(NamedTuple):
    """State of `with_adjustable_rate`."""

    inner: optax.OptState
    rate: Float[Array, ""]


def with_adjustable_rate(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` with its updates multiplied by `AdjustableRateState.rate`, 1 at start.

    For an Adam of rate 1 that is its learning rate. Right-preconditioning is linear in the update, so the same holds
    for an Adam inside `dbp.decorrelated`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> AdjustableRateState:
        return AdjustableRateState(inner.init(params), jnp.ones((), jnp.float32))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: object
    ) -> tuple[optax.Updates, AdjustableRateState]:
        assert isinstance(state, AdjustableRateState)
        updates, kept = inner.update(updates, state.inner, params, **extra)
        rate = state.rate
        return jax.tree.map(lambda u: u * rate.astype(u.dtype), updates), AdjustableRateState(kept, rate)

    return optax.GradientTransformationExtraArgs(init, update)


def set_rate(state: optax.OptState, rate: float) -> AdjustableRateState:
    """Returns the optimiser state with another rate."""
    assert isinstance(state, AdjustableRateState)
    return state._replace(rate=jnp.asarray(rate, jnp.float32))
