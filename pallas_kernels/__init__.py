"""The WKV-7 op behind one function, `wkv7`, with interchangeable implementations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pallas_kernels.chunked.layout import varying
from pallas_kernels.chunked.op import wkv7_chunked
from pallas_kernels.dispatch import wkv7_default
from pallas_kernels.gpu import wkv7_gpu
from pallas_kernels.reference import wkv7_scan
from pallas_kernels.tpu import wkv7_tpu
from pallas_kernels.triton.launch import wkv7_triton

IMPLEMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "scan": jax.jit(wkv7_scan),
    "chunked": jax.jit(wkv7_chunked),
    "gpu": jax.jit(wkv7_gpu),
    "tpu": jax.jit(wkv7_tpu),
    "triton": jax.jit(wkv7_triton),
}
AUTO = "auto"
_auto = jax.jit(wkv7_default)

__all__ = ["IMPLEMENTATIONS", "wkv7"]


def wkv7(
    r: ArrayLike,
    log_w: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    s0: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T;  y_t = S_t r_t,  over T tokens.

    Args:
        r, log_w, k, a, b: [B, T, H, K], float32 or bfloat16; log_w is the natural logarithm of the decay,
            in (-0.6066, 0) in RWKV-7; below -2.7 the kernels for TPU overflow, below -5 the chunked form.
        v: [B, T, H, V], float32 or bfloat16. Where r, k, v, a and b all are bfloat16, kernels multiply in bfloat16;
            float32 vectors take products as exact as float32, JAX's precision "highest".
        s0: [B, H, V, K] float32, the state before the first token.
        valid: bool [B, T]; False marks padding, anywhere in a row: the state passes through unchanged, y is 0, whatever
            the inputs hold there (NaN too), and their gradients there are 0.
        reset: bool [B, T]; True makes the state zero before that token, be the token valid or not.
        implementation: a name in `IMPLEMENTATIONS`, which runs or raises; "auto" picks by K, V and the platform that
            the program is compiled for, be it attached or not, see `default`; None is "auto" where JAX's default
            backend is a GPU or TPU, else "chunked", which is traced faster.

    Returns:
        (y, s_T): y [B, T, H, V] in the dtype of v, s_T [B, H, V, K] float32.

    Raises:
        ValueError: a shape or dtype that does not fit, or an unknown implementation.
    """
    name = implementation or ("chunked" if jax.default_backend() == "cpu" else AUTO)
    if name not in (AUTO, *IMPLEMENTATIONS):
        known = ", ".join(sorted((AUTO, *IMPLEMENTATIONS)))
        raise ValueError(f"unknown wkv7 implementation {implementation!r}: choose one of {known}")
    inputs = {
        n: jnp.asarray(x) for n, x in zip(("r", "log_w", "k", "v", "a", "b"), (r, log_w, k, v, a, b), strict=True)
    }
    state = jnp.asarray(s0)
    valid, reset = (None if x is None else jnp.asarray(x) for x in (valid, reset))
    _check(inputs, state, {"valid": valid, "reset": reset})
    if valid is not None:
        inputs = {n: _masked(x, valid) for n, x in inputs.items()}
    op = _auto if name == AUTO else IMPLEMENTATIONS[name]
    y, s_last = op(*_alike(*inputs.values(), state), reset)
    return (y if valid is None else _masked(y, valid)), s_last


def _masked(x: Array, valid: Array) -> Array:
    """x [B, T, H, N] with zeros where valid [B, T] is False; blocks NaN in both directions."""
    return jnp.where(valid[:, :, None, None], x, jnp.zeros_like(x))


def _alike(*arrays: Array) -> list[Array]:
    """The arrays as they are; under `shard_map`, differing along every mesh axis along which any of them does."""
    axes = frozenset[Any]().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
    return [varying(x, axes) for x in arrays]


def _check(inputs: dict[str, Array], s0: Array, flags: dict[str, Array | None]) -> None:
    """Raise ValueError, one line, for the first array that does not fit the others."""
    for name, x in inputs.items():
        if x.ndim != 4 or x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"wkv7: {name} must be float32 or bfloat16 [B, T, H, N], got {jax.typeof(x)}")
    r, v = inputs["r"], inputs["v"]
    if r.shape[1] < 1:
        raise ValueError(f"wkv7: at least one token is needed, got r {jax.typeof(r)}")
    for name, x in inputs.items():
        shape = (*r.shape[:3], (v if name == "v" else r).shape[3])
        if x.shape != shape:
            raise ValueError(f"wkv7: {name} must have shape {shape} to fit r and v, got {x.shape}")
    state_shape = (r.shape[0], r.shape[2], v.shape[3], r.shape[3])
    if s0.shape != state_shape or s0.dtype != jnp.float32:
        raise ValueError(f"wkv7: s0 must be float32 {state_shape} (value axis before key axis), got {jax.typeof(s0)}")
    for name, x in flags.items():
        if x is not None and (x.shape != r.shape[:2] or x.dtype != jnp.bool_):
            raise ValueError(f"wkv7: {name} must be bool {r.shape[:2]}, got {jax.typeof(x)}")
