"""How long an initial state matters: for fixed inputs to a layer its output is exactly affine in S_0."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rwkv7_jax.sharding import wkv7_on_mesh


def state_queries(
    r: Float[Array, "B T H K"],
    log_w: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H K"]:
    """Computes the vectors q_t with `y_t = y_t^0 + S_0 q_t`, where y^0 is the output from a zero state.

    `q_t = (prod_{i<=t} G_i) r_t` with `G_i = diag(w_i) + a_i b_i^T`: one WKV call with v = 0 and S_0 = I gives them
    all. |q_t| measures the effect of the initial state at token t; it is zero after a reset.

    Args:
      r: what a head reads with.
      log_w: log of the decay, below 0.
      k: what a head writes with.
      a: the removal key, negative.
      b: the removal key times its rate.
      valid: False marks padding.
      reset: True starts afresh from the zero state at that token.
      implementation: of the WKV op; None picks by device.

    Returns:
      q [B, T, H, K], float32.

    Example:
      >>> r, log_w, still = jnp.ones((1, 3, 1, 2)), jnp.log(jnp.full((1, 3, 1, 2), 0.5)), jnp.zeros((1, 3, 1, 2))
      >>> q = state_queries(r, log_w, still, still, still, implementation="scan")  # a decay of 1/2 a token alone
      >>> [round(x, 4) for x in q[0, :, 0, 0].tolist()]
      [0.5, 0.25, 0.125]
    """
    batch, _, heads, size = r.shape
    identity = jnp.broadcast_to(jnp.eye(size, dtype=jnp.float32), (batch, heads, size, size))
    vectors = (r, log_w, k, jnp.zeros_like(r), a, b)
    q, _ = wkv7_on_mesh(*vectors, identity, valid=valid, reset=reset, implementation=implementation)
    return q
