"""The schedule of chunked WKV-7 for accelerators: all chunks at once, except for the small scan over their states.

From one chunk to the next S_next = S D + N, and backward dS = dS_next D^T + dY^T R, where D, N and R come from the
chunk alone. Nothing here is differentiated by JAX.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.chunked import sequential
from pallas_kernels.chunked.forms import MIDDLE, Form
from pallas_kernels.chunked.layout import OpInputs, Saved, chunk_size, pad_time, split, split_inputs, unsplit
from pallas_kernels.chunked.math import ChunkInputs, Terms, mm, mm_t, t_mm

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]


class Transition(NamedTuple):
    """w: u = w S^T + (what does not depend on S); d: the map from state to state; both [B, H, n, ., K]."""

    w: Float[Array, "B H n C K"]
    d: Float[Array, "B H n K K"]


def _padded(x: OpInputs) -> ChunkInputs:
    size = chunk_size(x.v.shape[1])
    return split_inputs(pad_time(x, size), size)


def _split(x: Array) -> Float[Array, "B H n C N"]:
    size = chunk_size(x.shape[1])
    return split(pad_time(x, size), size)


def _transition(terms: Terms) -> Transition:
    w = mm(terms.inverse, terms.a_in)
    eye = jnp.eye(w.shape[-1], dtype=w.dtype)[None, None, None]
    return Transition(w, terms.decay * eye + t_mm(w, terms.b_out))


def _over_chunks(body, s: State, *per_chunk: Array, reverse: bool = False) -> tuple[State, Float[Array, "B H n V K"]]:
    """Scan `body(s, *chunk) -> s` over axis 2; also every s before its chunk."""
    rows = tuple(jnp.moveaxis(z, 2, 0) for z in per_chunk)
    s_last, states = lax.scan(lambda s, row: (body(s, *row), s), s, rows, reverse=reverse)
    return s_last, jnp.moveaxis(states, 0, 2)


def forward_saving(x: OpInputs, s0: State, *, form: Form = MIDDLE) -> tuple[Values, State, Saved]:
    """(y, s_T, what the full backward needs)."""
    length = x.v.shape[1]
    chunks = _padded(x)
    terms, _ = form.make_terms(chunks)
    w, d = _transition(terms)
    u_rest = mm(terms.inverse, mm(terms.ak, chunks.v))
    n = t_mm(chunks.v, terms.k_out) + t_mm(u_rest, terms.b_out)
    s_last, states = _over_chunks(lambda s, d, n: mm(s, d) + n, s0, d, n)
    u = mm_t(w, states) + u_rest
    y = mm_t(terms.r_in, states) + mm(terms.rb, u) + mm(terms.rk, chunks.v)
    saved = Saved(x, jnp.moveaxis(states, 2, 0), unsplit(u)[:, :length])
    return unsplit(y)[:, :length].astype(x.v.dtype), s_last, saved


def forward(x: OpInputs, s0: State, *, form: Form = MIDDLE) -> tuple[Values, State]:
    """(y, s_T); a single token takes the recurrence."""
    if x.v.shape[1] == 1:
        return sequential.forward(x, s0)
    return forward_saving(x, s0, form=form)[:2]


def backward(saved: Saved, dy: Values, ds: State, *, form: Form = MIDDLE) -> tuple[Array, ...]:
    """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
    length = dy.shape[1]
    chunks, dy = _padded(saved.inputs), _split(dy)
    terms, pairs = form.make_terms(chunks)
    ds, ds_ends = _state_gradients(terms, dy, ds)
    states = jnp.moveaxis(saved.states, 0, 2)
    grads, _ = form.gradients(chunks, terms, pairs, states, _split(saved.u), dy, ds_ends)
    grads = (unsplit(g)[:, :length].astype(z.dtype) for g, z in zip(grads, saved.inputs[:6], strict=True))
    return (*grads, ds)


def state_backward(x: OpInputs, dy: Values, ds: State, *, form: Form = MIDDLE) -> State:
    """The gradient of s0 alone. It depends on neither k nor v: the compiler drops what they enter."""
    return _state_gradients(form.make_terms(_padded(x))[0], _split(dy), ds)[0]


def _state_gradients(terms: Terms, dy: Array, ds: State) -> tuple[State, Float[Array, "B H n V K"]]:
    """The gradient of s0, and those of the states at all chunk ends."""
    w, d = _transition(terms)
    r = terms.r_in + mm(terms.rb, w)
    return _over_chunks(lambda ds, d, g: mm_t(ds, d) + g, ds, d, t_mm(dy, r), reverse=True)
