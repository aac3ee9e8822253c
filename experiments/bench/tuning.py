"""A state-tuning step, with this project's kernels and objective or by a naive scan."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.bench.inputs import TUNE, Timed, tokens
from rwkv7_jax import RWKV7, State, functional, zero_state
from rwkv7_jax import checkpoint as files
from rwkv7_jax.functional import Params
from state_tuning.core.objective import chunked_sums, completion_loss


def tuning(who: str, checkpoint: Path) -> Timed:
    """Returns (one loss and gradient to S_0 over a text of TUNE tokens, [loss]): ours, or a naive lax.scan model."""
    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, wkv_implementation=None if who == "ours" else "scan")
    model, zero = RWKV7(config), zero_state(config, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)
    text = jnp.asarray([tokens(TUNE + 1, config.vocab_size)], jnp.int32)
    mask = jnp.ones((1, TUNE), jnp.float32)

    def loss(wkv: Array, params: Params) -> Float[Array, ""]:
        state = zero._replace(wkv=wkv)
        if who == "ours":
            hidden, _ = functional.hidden(model, params, text[:, :-1], state)
            head = partial(functional.logits, model, params)
            nll, count = chunked_sums(hidden, head, text[:, 1:], mask, frozen_head=True)
            return nll.sum() / count.sum()
        if who == "token-by-token scan":

            def one(state: State, token: Int[Array, ""]) -> tuple[State, Float[Array, "1 vocab"]]:
                logits, state = functional.forward(model, params, token[None, None], state)
                return state, logits[:, 0]

            _, logits = jax.lax.scan(one, state, text[0, :-1])
            return completion_loss(jnp.moveaxis(logits, 0, 1), text[:, 1:], mask)
        return completion_loss(functional.forward(model, params, text[:, :-1], state)[0], text[:, 1:], mask)

    grad = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(grad(zero.wkv, params)), [float(grad(zero.wkv, params)[0])]
