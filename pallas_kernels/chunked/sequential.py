"""The schedule of WKV-7 for CPU: tokens one by one forward, chunks one by one backward.

Inputs are read in place, [B, T, H, N], one token or chunk at a time: that is faster than a scan over transposed copies,
and the intermediates of a chunk stay in cache. Nothing here is differentiated by JAX.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.chunked.forms import MIDDLE, Form
from pallas_kernels.chunked.layout import OpInputs, Saved, Tree, chunk_size, pad_time, split, split_inputs, unsplit
from pallas_kernels.reference import Token, cleared, matvec, step

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]


def _at(tree: Tree, t: Array) -> Tree:
    """The slices of all [B, T, ...] at time t, without the time axis."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, 1, keepdims=False), tree)


def _put(x: Array, value: Array, t: Array) -> Array:
    """x [B, T, ...] with `value` at time t."""
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), t, 1)


def forward(x: OpInputs, s0: State) -> tuple[Values, State]:
    """(y, s_T)."""

    def body(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        s, y = carry
        s, (y_t, _) = step(s, Token(*_at(x, t)))
        return s, _put(y, y_t, t)

    s_last, y = lax.fori_loop(0, x.v.shape[1], body, (s0, jnp.zeros_like(x.v)))
    return y, s_last


def forward_saving(x: OpInputs, s0: State) -> tuple[Values, State, Saved]:
    """(y, s_T, what the full backward needs)."""
    length = x.v.shape[1]
    size = chunk_size(length)

    def token(t: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        s, y, u = carry
        s, (y_t, u_t) = step(s, Token(*_at(x, t)))
        return s, _put(y, y_t, t), _put(u, u_t, t)

    def chunk(carry: tuple[Array, Array, Array], start: Array) -> tuple[tuple[Array, Array, Array], Array]:
        return lax.fori_loop(start, jnp.minimum(start + size, length), token, carry), carry[0]

    outputs = (s0, jnp.zeros_like(x.v), jnp.zeros_like(x.v, jnp.float32))
    (s_last, y, u), states = lax.scan(chunk, outputs, jnp.arange(0, length, size))
    return y, s_last, Saved(x, states, u)


def backward(saved: Saved, dy: Values, ds: State, *, form: Form = MIDDLE) -> tuple[Array, ...]:
    """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
    length = dy.shape[1]
    size = chunk_size(length)
    x, u, dy = pad_time((saved.inputs, saved.u, dy), size)

    def chunk(carry: tuple[Array, tuple[Array, ...]], here: tuple[Array, Array]) -> tuple[tuple, None]:
        ds, buffers = carry
        start, s = here

        part, u_part, dy_part = jax.tree.map(lambda z: lax.dynamic_slice_in_dim(z, start, size, 1), (x, u, dy))
        part = split_inputs(part, size)
        terms, pairs = form.make_terms(part)
        grads, ds = form.gradients(part, terms, pairs, s[:, :, None], split(u_part, size), split(dy_part, size), ds)
        buffers = (
            lax.dynamic_update_slice_in_dim(z, unsplit(g).astype(z.dtype), start, 1)
            for z, g in zip(buffers, grads, strict=True)
        )
        return (ds, tuple(buffers)), None

    starts = jnp.arange(0, length, size)
    buffers = tuple(jnp.zeros_like(z) for z in x[:6])
    (ds, grads), _ = lax.scan(chunk, (ds[:, :, None], buffers), (starts, saved.states), reverse=True)
    return (*(g[:, :length] for g in grads), ds[:, :, 0])


def state_backward(x: OpInputs, dy: Values, ds: State) -> State:
    """The gradient of s0 alone, by the transposed recurrence; it needs neither k nor v nor any state."""
    length = dy.shape[1]

    def body(i: Array, ds: Array) -> Array:
        t = length - 1 - i
        now, dy_t = _at((x, dy), t)
        r, log_w, a, b, dy_t = (z.astype(jnp.float32) for z in (now.r, now.log_w, now.a, now.b, dy_t))
        ds = ds + dy_t[..., None] * r[:, :, None, :]
        ds = ds * jnp.exp(log_w)[:, :, None, :] + matvec(ds, b)[..., None] * a[:, :, None, :]
        return cleared(ds, now.reset)

    return lax.fori_loop(0, length, body, ds)
