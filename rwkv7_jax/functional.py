"""The model as typed functions: weights and states are arguments, nothing is remembered between calls."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int, PyTree

from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State

__all__ = ["Params", "forward", "hidden", "logits", "step"]

Params = dict[str, PyTree]
"""A model's weights: {"emb", "ln0", "block_0", "blocks" (or "block_1", ...), "ln_out", "head"}."""


def hidden(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    state: State | PyTree,
    *,
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], State]:
    """Computes the final normalised activations of every token, and the state after the last valid one.

    Args:
      model: the model's description; a static argument under `jax.jit`.
      params: its weights.
      tokens: token ids [B, T].
      state: the recurrent state before the first token, [L, B, ...]; its `wkv` may be any `WKVState`. A model that
        overrides `apply` may take something else.
      valid: False marks padding, anywhere in a row: it changes nothing.
      reset: True starts afresh from the zero state at that token.

    Returns:
      (activations [B, T, D] in the compute dtype, state [L, B, ...]).
    """
    return _apply(model, params, tokens, state, valid=valid, reset=reset, method=RWKV7.hidden)


def logits(model: RWKV7, params: Params, x: Float[Array, "*B D"]) -> Float[Array, "*B vocab"]:
    """Computes the logits of activations that `hidden` returned.

    Args:
      model: the model's description; a static argument under `jax.jit`.
      params: its weights.
      x: activations [*B, D] in the compute dtype, of any leading axes: some of the tokens, say.

    Returns:
      Unnormalised log-probabilities [*B, vocab], float32.
    """
    return _apply(model, params, x, method=RWKV7.logits)


def forward(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    state: State,
    *,
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    last_only: bool = False,
) -> tuple[Float[Array, "B _ vocab"], State]:
    """Computes the logits of every token, and the state after the last valid one.

    Args:
      model: the model's description; a static argument under `jax.jit`.
      params: its weights.
      tokens: token ids [B, T].
      state: the recurrent state before the first token, [L, B, ...].
      valid: False marks padding, anywhere in a row: it changes nothing.
      reset: True starts afresh from the zero state at that token.
      last_only: compute the logits of each row's last valid token alone, [B, 1, vocab].

    Returns:
      (logits [B, T, vocab] float32, state [L, B, ...]).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rwkv7_jax import RWKV7, RWKV7Config, functional, zero_state
      >>> from rwkv7_jax.model import init_params
      >>> config = RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4)
      >>> model = RWKV7(config)
      >>> params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
      >>> y, state = functional.forward(model, params, jnp.array([[1, 2, 3]]), zero_state(config, 1))
      >>> y.shape
      (1, 3, 16)
    """
    return _apply(model, params, tokens, state, valid=valid, reset=reset, last_only=last_only)


def step(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    layers: list[State],
    *,
    valid: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B vocab"], list[State]]:
    """Feeds tokens to a model whose layers stand one by one, from and to one state a layer.

    Nothing of the state is copied from token to token: the way to decode. `LanguageModel.step` is this, compiled.

    Args:
      model: the model's description, `scan_layers` False.
      params: its weights, as `rwkv7_jax.generation.generate.for_decoding` returns them.
      tokens: token ids [B, T].
      layers: the recurrent state before the first token, as `rwkv7_jax.model.split_layers` returns it.
      valid: False marks padding, anywhere in a row.

    Returns:
      (float32 logits [B, vocab] after each row's last valid token, one state a layer).
    """
    return _apply(model, params, tokens, layers, valid=valid, method=RWKV7.step)


def _apply(model: nn.Module, params: Params, *args: object, **options: object) -> PyTree:
    return model.apply({"params": params}, *args, **options)  # pyright: ignore[reportArgumentType]
