"""Probes: memories that watch a layer's streams in a forward pass and hand back what they saw in the final state.

They stand in `State.wkv` around the real memory, so the model's scan over layers carries their findings like a state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import WKV, Streams, attend
from state_tuning.core.objective import Batch
from state_tuning.core.train import Method
from state_tuning.dbp.queries import state_queries

Correlate = Callable[[PyTree, PyTree, Batch], State]


class Recorder(NamedTuple):
    """Keeps the streams of every token: `seen` is None before the pass and Streams [L, B, T, H, *] after it."""

    s: Any
    seen: Any = None

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Recorder"]:
        y, s = attend(self.s, x, op)
        return y, Recorder(s, x)

    def lifted(self, x: Streams) -> Streams:
        return x

    def queries(self, x: Streams, query: Any) -> Any:
        return Recorder(query(x))


class Correlator(NamedTuple):
    """Keeps `C = E[z z^T]` [L, H, K, K] over valid tokens, for each matrix of the memory with input vectors z."""

    s: Any
    seen: Any = None

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Correlator"]:
        y, s = attend(self.s, x, op)

        def query(x: Streams) -> Array:
            return state_queries(x.r, x.log_w, x.k, -x.kk, x.kk * x.iclr, **op._asdict())

        inputs = self.s.queries(x, query) if hasattr(self.s, "queries") else query(x)
        return y, Correlator(s, jax.tree.map(partial(second_moment, valid=op.valid), inputs))

    def lifted(self, x: Streams) -> Streams:
        return x

    def queries(self, x: Streams, query: Any) -> Any:
        return Correlator(query(x))


def second_moment(z: Float[Array, "B T H K"], valid: Array | None = None) -> Float[Array, "H K K"]:
    """The mean of z z^T over rows and valid tokens, float32."""
    z = z.astype(jnp.float32)
    used = jnp.ones(z.shape[:2], jnp.float32) if valid is None else valid.astype(jnp.float32)
    total = jnp.einsum("bthi,bthj->hij", z * used[:, :, None, None], z, precision="highest")
    return total / jnp.maximum(used.sum(), 1.0)


def correlations(model: RWKV7, method: Method, sample: float = 0.1) -> Correlate:
    """A function (params, trainable, batch) -> C, what DBP learns from.

    C is a State with [L, H, K, K] in each matrix's place: E[q q^T] of the identity probe for S_0, E[psi psi^T] for
    S_ext, None for other leaves. One forward pass over a `sample` of the batch, whole rows (the first ones: batches are
    shuffled), at least one; no gradient.
    """
    apply: Callable[..., Any] = model.apply

    def correlate(params: PyTree, trainable: PyTree, batch: Batch) -> State:
        rows = max(1, round(sample * batch["tokens"].shape[0]))
        tokens, valid = (jnp.asarray(batch[name])[:rows] for name in ("tokens", "valid"))
        state = jax.lax.stop_gradient(method.graft(trainable, rows))
        state = state._replace(wkv=Correlator(state.wkv))
        _, last = apply({"params": params}, tokens, state, valid=valid, method="hidden")
        return State(None, None, last.wkv.seen)  # pyright: ignore[reportArgumentType]

    return correlate


def record(model: RWKV7, params: PyTree, batch: Batch) -> Streams:
    """The streams [L, B, T, H, K] of the frozen model on a batch, from the zero state."""
    return _record(model, params, *(jnp.asarray(batch[name]) for name in ("tokens", "valid")))


@partial(jax.jit, static_argnums=0)
def _record(model: RWKV7, params: PyTree, tokens: Array, valid: Array) -> Streams:
    apply: Callable[..., Any] = model.apply
    state = zero_state(model.config, tokens.shape[0])
    state = state._replace(wkv=Recorder(state.wkv))  # pyright: ignore[reportArgumentType]
    return apply({"params": params}, tokens, state, valid=valid, method="hidden")[1].wkv.seen
