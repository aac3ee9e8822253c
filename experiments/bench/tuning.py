"""A state-tuning step, with this project's kernels and objective or by a scan that JAX differentiates."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.bench import ours
from experiments.bench.inputs import TUNE, Timed, tokens
from rwkv7_jax import RWKV7, State, functional, zero_state
from rwkv7_jax.functional import Params
from rwkv7_jax.wkv_state import WKV, Query, Streams
from state_tuning.core.objective import chunked_sums, completion_loss

UNROLLED = 64
"""Steps of the scan that XLA sees as one."""


class UnrolledScan(NamedTuple):
    """A plain state whose recurrence is a `lax.scan` by `UNROLLED` tokens, without a gradient of its own."""

    s: Float[Array, "*L B H V K"]

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "UnrolledScan"]:
        """Reads and writes S token by token."""

        def one(s: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
            r, w, k, v, kk, rate = token
            removed = jnp.einsum("bhvk,bhk->bhv", s, kk)
            s = s * w[:, :, None] - removed[..., None] * (kk * rate)[:, :, None] + v[..., None] * k[:, :, None]
            return s, jnp.einsum("bhvk,bhk->bhv", s, r)

        inputs = (x.r, jnp.exp(x.log_w), x.k, x.v, x.kk, x.iclr)
        s, y = jax.lax.scan(one, self.s, jax.tree.map(lambda z: jnp.moveaxis(z, 1, 0), inputs), unroll=UNROLLED)
        return jnp.moveaxis(y, 0, 1), UnrolledScan(s)

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs unchanged: no recurrence is added."""
        return x

    def queries(self, x: Streams, query: Query) -> "UnrolledScan":
        """Returns q for S_0."""
        return UnrolledScan(query(x))


def tuning(who: str, dtype: str, checkpoint: Path) -> Timed:
    """Returns one loss and gradient to S_0 over a text of TUNE tokens, and [loss]: ours, or by a scan."""
    given, params = ours.load(checkpoint, dtype)
    scanned = "scan" if who.endswith("scan") else None
    model = RWKV7(dataclasses.replace(given.config, wkv_implementation=scanned))
    zero = zero_state(model.config, 1)
    text = jnp.asarray([tokens(TUNE + 1, model.config.vocab_size)], jnp.int32)
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
        if "unrolled" in who:
            state = zero._replace(wkv=UnrolledScan(wkv))
        return completion_loss(functional.forward(model, params, text[:, :-1], state)[0], text[:, 1:], mask)

    grad = jax.jit(jax.value_and_grad(loss))
    call = partial(grad, zero.wkv, params)
    return Timed({"": lambda: jax.block_until_ready(call())}, [float(call()[0])])
