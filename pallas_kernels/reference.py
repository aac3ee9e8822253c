"""The WKV-7 recurrence as a `lax.scan` over tokens: the specification that every other implementation must match.

One step, per sequence and head, with the state S of shape [V, K] (value axis first) in float32:

    S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


class Token(NamedTuple):
    """Inputs of one step; inside a scan the fields carry a leading time axis. `reset` is None or Bool[B]."""

    r: Float[Array, "*T B H K"]
    log_w: Float[Array, "*T B H K"]
    k: Float[Array, "*T B H K"]
    v: Float[Array, "*T B H V"]
    a: Float[Array, "*T B H K"]
    b: Float[Array, "*T B H K"]
    reset: Bool[Array, "*T B"] | None


def matvec(s: Float[Array, "B H V K"], x: Float[Array, "B H K"]) -> Float[Array, "B H V"]:
    """The state applied to one key-space vector."""
    return jnp.einsum("bhvk,bhk->bhv", s, x, precision=lax.Precision.HIGHEST)


def cleared(s: Float[Array, "B H V K"], reset: Bool[Array, " B"] | None) -> Float[Array, "B H V K"]:
    """The state with the sequences marked in `reset` set to zero."""
    return s if reset is None else jnp.where(reset[:, None, None, None], jnp.zeros_like(s), s)


def step(s: Float[Array, "B H V K"], token: Token) -> tuple[Float[Array, "B H V K"], tuple[Array, Array]]:
    """One token. Returns (S_t, (y_t, S_{t-1} a_t)), both of the latter float32 [B, H, V]."""
    r, log_w, k, v, a, b = (x.astype(jnp.float32) for x in token[:6])
    s = cleared(s, token.reset)
    sa = matvec(s, a)
    s = s * jnp.exp(log_w)[:, :, None, :] + sa[..., None] * b[:, :, None, :] + v[..., None] * k[:, :, None, :]
    return s, (matvec(s, r), sa)


def wkv7_scan(
    r: Float[Array, "B T H K"],
    log_w: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    s0: Float[Array, "B H V K"],
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V K"]]:
    """The recurrence, token by token; y has the dtype of v, the state is float32. Differentiable by autodiff."""

    def body(s: Array, token: Token) -> tuple[Array, Array]:
        s, (y, _) = step(s, token)
        return s, y.astype(v.dtype)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), Token(r, log_w, k, v, a, b, reset))
    s_last, y = jax.lax.scan(body, s0, tokens)
    return jnp.moveaxis(y, 0, 1), s_last
