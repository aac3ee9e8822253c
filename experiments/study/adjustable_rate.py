"""Optimisers whose learning rate is part of their state: one compiled step serves every rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from state_tuning.core import train


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


class PeakState(NamedTuple):
    """State of the last part of `make_adam_with_peak`."""

    count: Int[Array, ""]
    """Updates applied."""
    peak: Float[Array, ""]


def make_adam_with_peak(tune: train.TuneConfig) -> optax.GradientTransformation:
    """Returns the steps of `state_tuning.core.train.make_optimizer`, bit for bit, with the peak rate in its state.

    `set_peak` changes it, in this optimiser's state or in that of one around it.
    """
    clip = optax.clip_by_global_norm(tune.clip_norm) if tune.clip_norm else optax.identity()

    def init(params: optax.Params) -> PeakState:
        return PeakState(jnp.zeros((), jnp.int32), jnp.asarray(tune.learning_rate, jnp.float32))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, PeakState]:
        assert isinstance(state, PeakState)
        rate = -1 * train.make_schedule(tune, state.peak)(state.count)
        scaled = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        return scaled, state._replace(count=optax.safe_increment(state.count))

    descend = optax.GradientTransformation(init, update)
    return optax.chain(clip, optax.scale_by_adam(tune.b1, tune.b2, tune.eps), descend)


def set_peak(state: train.TuneState, peak: float) -> train.TuneState:
    """Returns the state before a step with another peak rate."""
    opt_state = optax.tree_utils.tree_set(state.opt_state, peak=jnp.asarray(peak, jnp.float32))
    return state._replace(opt_state=opt_state)
