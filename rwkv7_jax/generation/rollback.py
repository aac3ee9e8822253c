"""One pass over some tokens, and the state after any number of them: what rejecting the last ones needs.

A pass keeps the input of each mix and what each layer's recurrence was fed, a few vectors a token. From these the
recurrences alone give the state after the first n tokens, without a product with a weight and without a matrix state a
token. It is the state that a pass over those n tokens ends with.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rwkv7_jax import functional
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import ChannelMix, TimeMix
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State
from rwkv7_jax.wkv_state import WKV, Query, Streams, WKVState, attend

Layers = State | list[State]
"""A state [L, B, ...], or one a layer."""


class Recorded(NamedTuple):
    """A `WKVState` that stays as it was before the tokens and keeps what they feed the recurrence."""

    before: Array | WKVState
    streams: Streams | None = None

    @property
    def s(self) -> Array:
        """The plain matrix S before the tokens."""
        return self.before.s if isinstance(self.before, WKVState) else self.before

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Recorded"]:
        """Returns the outputs, and the record."""
        return attend(self.before, x, op)[0], Recorded(self.before, x)

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs of the recurrence that the state before changes."""
        return self.before.lifted(x) if isinstance(self.before, WKVState) else x

    def queries(self, x: Streams, query: Query) -> "Recorded":
        """Returns the queries of the state before."""
        return Recorded(self.before.queries(x, query) if isinstance(self.before, WKVState) else query(x))


class EveryToken(RWKV7):
    """RWKV-7 whose token-shift states after a pass are those after each of its tokens, [L, B, T, D]."""

    @nn.nowrap
    def apply(self, variables: dict[str, Params], *args: PyTree, **options: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Calls the model as RWKV7 does."""
        with nn.intercept_methods(_keep_inputs):
            return super().apply(variables, *args, **options)


def _keep_inputs(
    next_call: Callable[..., PyTree], args: tuple, options: dict, context: nn.module.InterceptorContext
) -> PyTree:
    """A mix returns its inputs where it would return the last of them."""
    out = next_call(*args, **options)
    if context.method_name != "__call__" or not isinstance(context.module, TimeMix | ChannelMix):
        return out
    return (out[0], args[0], *out[2:])


def read(
    model: RWKV7, params: Params, tokens: Int[Array, "B T"], state: Layers
) -> tuple[Float[Array, "B T vocab"], Layers]:
    """Reads tokens in one pass and keeps what `state_after` needs.

    Args:
      model: the model's description.
      params: its weights.
      tokens: token ids [B, T].
      state: the state before them; one a layer if the model's layers stand one by one.

    Returns:
      (float32 logits after each token, the record).
    """
    recording = EveryToken(model.config)
    if isinstance(state, list):
        before = [layer._replace(wkv=Recorded(layer.wkv)) for layer in state]
        hidden, record = recording.apply({"params": params}, tokens, before, method=RWKV7.one_by_one)
    else:
        before = state._replace(wkv=Recorded(state.wkv))
        hidden, record = functional.hidden(recording, params, tokens, before)
    return functional.logits(model, params, hidden), record


def state_after(config: RWKV7Config, state: Layers, record: Layers, count: Int[Array, "B"]) -> Layers:
    """Returns the state after the first `count` tokens of each row.

    Args:
      config: of the model.
      state: before the tokens.
      record: of `read`.
      count: from 0, which gives the state before, to all that were read.
    """
    if isinstance(state, list):
        assert isinstance(record, list)
        return [_layer_after(config, one, kept, count) for one, kept in zip(state, record, strict=True)]
    return jax.lax.map(lambda pair: _layer_after(config, pair[0], pair[1], count), (state, record))


def _layer_after(config: RWKV7Config, before: State, record: State, count: Int[Array, "B"]) -> State:
    recorded = record.wkv
    assert isinstance(recorded, Recorded)
    assert recorded.streams is not None
    read = jnp.arange(record.att_shift.shape[1], dtype=jnp.int32)[None] < count[:, None]
    _, wkv = attend(recorded.before, recorded.streams, WKV(read, None, config.wkv_implementation))
    att_shift = _input_at(before.att_shift, record.att_shift, count)
    return State(att_shift, _input_at(before.ffn_shift, record.ffn_shift, count), wkv)  # pyright: ignore[reportArgumentType]


def _input_at(last: Float[Array, "B D"], inputs: Float[Array, "B T D"], count: Int[Array, "B"]) -> Float[Array, "B D"]:
    extended = jnp.concatenate([last[:, None], inputs], axis=1)
    return jnp.take_along_axis(extended, count[:, None, None], axis=1)[:, 0]
