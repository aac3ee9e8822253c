"""The gated delta rule (Gated DeltaNet, Kimi Delta Attention) as `wkv7`."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pallas_kernels.op import LOWEST_LOG_W, wkv7


def gated_delta_rule(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    log_alpha: ArrayLike,
    beta: ArrayLike,
    s0: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Computes the gated delta rule over T tokens, differentiable once in reverse mode.

    For t = 1 ... T, in every sequence and head, with alpha_t = exp(log_alpha_t),

        S_t = S_{t-1} diag(alpha_t) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T          o_t = S_t q_t

    which is `wkv7` with r = q, log_w = log_alpha, a = -alpha k, b = beta k, and beta k for its k. One alpha a head is
    Gated DeltaNet (arXiv:2412.06464), one a channel of the key Kimi Delta Attention (arXiv:2510.26692); log_alpha = 0
    is the delta rule. Keys are normalised, and q is scaled, by the caller. What is differentiated picks the backward as
    in `wkv7`: the gradient of s0 alone is cheap.

    Args:
      q: queries [B, T, H, K], float32 or bfloat16.
      k: keys [B, T, H, K]; of length at most 1, or the recurrence may grow.
      v: values [B, T, H, V].
      log_alpha: natural logarithm of the decay, at most 0, [B, T, H] or [B, T, H, K]. Below -20, a decay of 2e-9, it
        counts as -20 and has gradient 0; minus infinity is allowed.
      beta: how much of what a key holds is replaced, [B, T, H], in 0..1 (up to 2 where negative eigenvalues are
        wanted).
      s0: state before the first token [B, H, V, K], value axis first, float32.
      valid, reset: bool [B, T], padding and restarts, as in `wkv7`.
      implementation: as in `wkv7`.

    Returns:
      (o, s_T): outputs [B, T, H, V] in the dtype of v, and the state after the last token [B, H, V, K], float32.

    Raises:
      ValueError: a shape or dtype that does not fit, or an unknown implementation.

    Example:
      A value is stored under a key, forgotten by half, and half replaced.

      >>> import jax.numpy as jnp
      >>> k, v = jnp.ones((1, 2, 1, 1)), jnp.array([8.0, 2.0]).reshape(1, 2, 1, 1)
      >>> log_alpha, beta = jnp.log(jnp.array([[[1.0], [0.5]]])), jnp.array([[[1.0], [0.5]]])
      >>> o, s = gated_delta_rule(k, k, v, log_alpha, beta, jnp.zeros((1, 1, 1, 1)))
      >>> o[0, :, 0, 0].tolist()
      [8.0, 3.0]
    """
    q, k, v, log_alpha, beta, s0 = (jnp.asarray(x) for x in (q, k, v, log_alpha, beta, s0))
    _check(q, k, log_alpha, beta)
    log_w, a, kb = _as_wkv7(k, log_alpha, beta)
    return wkv7(
        q, log_w, kb, v, a, kb, s0, valid=valid, reset=reset, min_log_w=LOWEST_LOG_W, implementation=implementation
    )


@jax.jit
def _as_wkv7(k: Array, log_alpha: Array, beta: Array) -> tuple[Array, Array, Array]:
    """(log_w, a, b) of `wkv7`, computed in float32; a and b in the dtype of k."""
    full = log_alpha if log_alpha.ndim == 4 else log_alpha[..., None]
    log_w = jnp.broadcast_to(jnp.maximum(full.astype(jnp.float32), LOWEST_LOG_W), k.shape)
    keys = k.astype(jnp.float32)
    a, b = -jnp.exp(log_w) * keys, beta.astype(jnp.float32)[..., None] * keys
    return log_w, a.astype(k.dtype), b.astype(k.dtype)


def _check(q: Array, k: Array, log_alpha: Array, beta: Array) -> None:
    """Raises ValueError, one line, for what `wkv7` cannot name by the caller's names."""
    fail = partial("gated_delta_rule: {} must be float32 or bfloat16 {}, got {}".format)
    for name, x in (("q", q), ("k", k), ("log_alpha", log_alpha), ("beta", beta)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(fail(name, "[B, T, H, K]" if name in "qk" else "[B, T, H]", jax.typeof(x)))
    if q.ndim != 4 or k.shape != q.shape:
        raise ValueError(fail("k", f"{q.shape} to fit q [B, T, H, K]", jax.typeof(k)))
    if log_alpha.shape not in (q.shape[:3], q.shape):
        raise ValueError(fail("log_alpha", f"{q.shape[:3]} or {q.shape}", jax.typeof(log_alpha)))
    if beta.shape != q.shape[:3]:
        raise ValueError(fail("beta", f"{q.shape[:3]}", jax.typeof(beta)))
