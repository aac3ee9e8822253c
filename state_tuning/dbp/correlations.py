"""Correlations of a layer's inputs, measured in a forward pass: what DBP learns from.

A probe stands in `State.wkv` around the real state, records a layer's streams, and returns what it recorded in the
final state: the model's scan over layers carries it like any state.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import WKV, Streams, attend
from state_tuning.core.objective import Batch
from state_tuning.core.train import Correlate, Method
from state_tuning.dbp.queries import state_queries

__all__ = ["Correlate", "make_correlate", "record", "second_moment"]


class Recorder(NamedTuple):
    """Keeps the streams of every token: `seen` is None before the pass and Streams [L, B, T, H, *] after it."""

    s: PyTree
    seen: PyTree = None

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Recorder"]:
        """Reads and writes the state that it stands around, and records the streams."""
        y, s = attend(self.s, x, op)
        return y, Recorder(s, x)

    def lifted(self, x: Streams) -> Streams:
        """Returns the streams as they are."""
        return x

    def queries(self, x: Streams, query: PyTree) -> "Recorder":
        """Returns the input of S_0."""
        return Recorder(query(x))


class Correlator(NamedTuple):
    """Keeps `C = E[z z^T]` [L, H, K, K] over valid tokens, for each matrix of the state with input vectors z."""

    s: PyTree
    seen: PyTree = None

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Correlator"]:
        """Reads and writes the state that it stands around, and measures C."""
        y, s = attend(self.s, x, op)

        def query(x: Streams) -> Array:
            return state_queries(x.r, x.log_w, x.k, -x.kk, x.kk * x.iclr, **op._asdict())

        inputs = self.s.queries(x, query) if hasattr(self.s, "queries") else query(x)
        return y, Correlator(s, jax.tree.map(partial(second_moment, valid=op.valid), inputs))

    def lifted(self, x: Streams) -> Streams:
        """Returns the streams as they are."""
        return x

    def queries(self, x: Streams, query: PyTree) -> "Correlator":
        """Returns the input of S_0."""
        return Correlator(query(x))


def second_moment(z: Float[Array, "B T H K"], valid: Array | None = None) -> Float[Array, "H K K"]:
    """Computes the mean of z z^T over sequences and valid tokens.

    Args:
      z: vectors of each token by head.
      valid: [B, T], False marks padding; None: all tokens count.

    Returns:
      C [H, K, K], float32; zeros without a valid token.

    Example:
      >>> second_moment(jnp.array([[[[1.0, 0.0]], [[1.0, 2.0]]]])).tolist()  # two tokens, one head
      [[[1.0, 1.0], [1.0, 2.0]]]
    """
    z = z.astype(jnp.float32)
    used = jnp.ones(z.shape[:2], jnp.float32) if valid is None else valid.astype(jnp.float32)
    total = jnp.einsum("bthi,bthj->hij", z * used[:, :, None, None], z, precision="highest")
    return total / jnp.maximum(used.sum(), 1.0)


def make_correlate(model: RWKV7, method: Method, sample: float = 0.1) -> Correlate:
    """Returns a function (params, trainable, batch) -> C, what DBP learns from.

    C is a State with [L, H, K, K] for each matrix: E[q q^T] for S_0 (see `state_queries`), E[psi psi^T] for S_ext, None
    for other leaves. It takes one forward pass and no gradient.

    Args:
      model: the model's description.
      method: what is trained.
      sample: part of the batch that is read, whole sequences (the first ones: batches are shuffled), at least one.

    Returns:
      The function, for `make_train_step(..., correlate=...)`.
    """

    def correlate(params: Params, trainable: PyTree, batch: Batch) -> State:
        rows = max(1, round(sample * batch["tokens"].shape[0]))
        tokens, valid = (jnp.asarray(batch[name])[:rows] for name in ("tokens", "valid"))
        state = jax.lax.stop_gradient(method.graft(trainable, rows))
        state = state._replace(wkv=Correlator(state.wkv))
        _, last = functional.hidden(model, params, tokens, state, valid=valid)
        return State(None, None, last.wkv.seen)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]

    return correlate


def record(model: RWKV7, params: Params, batch: Batch) -> Streams:
    """Records what each layer's recurrence reads and writes on a batch of text, from the zero state.

    Args:
      model: the model's description.
      params: its weights.
      batch: sequences [B, T], of which `tokens` and `valid` are used.

    Returns:
      The streams r, log_w, k, v, kk and iclr, [L, B, T, H, K] each.
    """
    return _record(model, params, *(jnp.asarray(batch[name]) for name in ("tokens", "valid")))


@partial(jax.jit, static_argnums=0)
def _record(model: RWKV7, params: Params, tokens: Array, valid: Array) -> Streams:
    state = zero_state(model.config, tokens.shape[0])
    state = state._replace(wkv=Recorder(state.wkv))  # pyright: ignore[reportArgumentType]
    wkv: PyTree = functional.hidden(model, params, tokens, state, valid=valid)[1].wkv
    return wkv.seen
