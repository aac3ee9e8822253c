"""The public functions `wkv7` and `wkv7_step`: what they refuse, padding, and the choice of the implementation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pallas_kernels.chunked.layout import varying
from pallas_kernels.chunked.op import wkv7_chunked, wkv7_chunked_wide
from pallas_kernels.dispatch import wkv7_auto, wkv7_auto_wide
from pallas_kernels.gpu import wkv7_gpu, wkv7_gpu_wide
from pallas_kernels.reference import wkv7_scan
from pallas_kernels.tpu import wkv7_tpu, wkv7_tpu_wide
from pallas_kernels.triton.launch import wkv7_triton, wkv7_triton_wide

IMPLEMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "scan": jax.jit(wkv7_scan),
    "chunked": jax.jit(wkv7_chunked),
    "gpu": jax.jit(wkv7_gpu),
    "tpu": jax.jit(wkv7_tpu),
    "triton": jax.jit(wkv7_triton),
}
"""The implementations of `wkv7` by name, each (r, log_w, k, v, a, b, s0, reset) -> (y, s_T)."""

WIDE: dict[str, Callable[..., tuple[Array, Array]]] = {
    "scan": IMPLEMENTATIONS["scan"],
    "chunked": jax.jit(wkv7_chunked_wide),
    "gpu": jax.jit(wkv7_gpu_wide),
    "tpu": jax.jit(wkv7_tpu_wide),
    "triton": jax.jit(wkv7_triton_wide),
}
"""The same for log_w down to `LOWEST_LOG_W`."""

NARROW_LOG_W = -2.7
"""What every implementation takes at its full speed; RWKV-7 stays above -0.6066."""
LOWEST_LOG_W = -20.0
"""A decay of 2e-9."""

AUTO = "auto"
NAMES = ("r", "log_w", "k", "v", "a", "b")

_auto, _auto_wide = jax.jit(wkv7_auto), jax.jit(wkv7_auto_wide)


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
    min_log_w: float = NARROW_LOG_W,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Computes the RWKV-7 recurrence over T tokens, differentiable once in reverse mode.

    For t = 1 ... T, in every sequence and head,

        S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t

    where S_0 is `s0`. Vectors that all are bfloat16 are multiplied in bfloat16 with float32 sums; float32 vectors take
    products as exact as float32, JAX's precision "highest". The state is float32 throughout.

    Args:
      r: receptance [B, T, H, K], float32 or bfloat16; the query of linear attention.
      log_w: natural logarithm of the decay [B, T, H, K], from `min_log_w` to 0; in (-0.6066, 0) in RWKV-7. Below
        `min_log_w` results may overflow: nothing looks at the values.
      k: keys [B, T, H, K].
      v: values [B, T, H, V].
      a: what is read from the state to be replaced [B, T, H, K]; minus the normalised key in RWKV-7.
      b: where it is written to [B, T, H, K]; the normalised key times the in-context learning rate in RWKV-7.
      s0: state before the first token [B, H, V, K], float32.
      valid: bool [B, T]; False marks padding, anywhere in a sequence: the state passes through unchanged, y is 0,
        whatever the inputs hold there (NaN too), and their gradients there are 0. None: all tokens are valid.
      reset: bool [B, T]; True makes the state zero before that token, be the token valid or not. None: no resets.
      min_log_w: the lowest log_w that may occur, a Python number, down to -20. Below -2.7 the program is another one,
        exact for strong decays and slower, see docs/kernels.md.
      implementation: a key of `IMPLEMENTATIONS`, which runs or raises; "auto" picks by K, V and the platform that the
        program is compiled for, be it attached or not, see `pallas_kernels.dispatch`; None is "auto" where JAX's
        default backend is a GPU or TPU, else "chunked", which is traced faster.

    Returns:
      (y, s_T): outputs [B, T, H, V] in the dtype of v, and the state after the last token [B, H, V, K], float32.

    Raises:
      ValueError: a shape or dtype that does not fit, an unknown implementation, or a `min_log_w` out of range.

    Example:
      Two tokens with the keys (1, 0) and (0, 1) store the values (1, 2) and (3, 4) as columns of the state, and each
      is read back by its own key.

      >>> import jax.numpy as jnp
      >>> k = jnp.eye(2).reshape(1, 2, 1, 2)
      >>> v = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 1, 2)
      >>> none = jnp.zeros((1, 2, 1, 2))
      >>> y, s = wkv7(k, none, k, v, none, none, jnp.zeros((1, 1, 2, 2)))
      >>> y[0, :, 0].tolist()
      [[1.0, 2.0], [3.0, 4.0]]
      >>> s[0, 0].tolist()
      [[1.0, 3.0], [2.0, 4.0]]
    """
    name = implementation or ("chunked" if jax.default_backend() == "cpu" else AUTO)
    if name not in (AUTO, *IMPLEMENTATIONS):
        known = ", ".join(sorted((AUTO, *IMPLEMENTATIONS)))
        raise ValueError(f"unknown wkv7 implementation {implementation!r}: choose one of {known}")
    inputs, state, flags = _arrays((r, log_w, k, v, a, b), s0, valid, reset)
    _check("wkv7", "[B, T, H, N]", inputs, state, flags)
    return _apply(_named(name, min_log_w), inputs, state, **flags)


def wkv7_step(
    r: ArrayLike,
    log_w: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    s: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    reset: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Computes one token of the RWKV-7 recurrence for many sequences, each with its own state.

        S' = S diag(exp(log_w)) + (S a) b^T + v k^T          y = S' r

    On GPU and TPU one kernel reads each state once and writes it where it was read: in a loop, or with the state
    donated to `jax.jit`, no copy is made. Equal to `wkv7` with T = 1 and implementation "auto", gradients included.

    Args:
      r, log_w, k, a, b: [B, H, K], float32 or bfloat16, as in `wkv7`.
      v: [B, H, V], float32 or bfloat16.
      s: states [B, H, V, K], float32.
      valid: bool [B]; False passes the state through unchanged and makes y 0. None: all tokens are valid.
      reset: bool [B]; True makes the state zero before the token. None: no resets.

    Returns:
      (y, S'): outputs [B, H, V] in the dtype of v, and the states after the token [B, H, V, K], float32.

    Raises:
      ValueError: a shape or dtype that does not fit.

    Example:
      The state [[0, 1], [1, 0]] decays by half; the key (1, 0) stores the value (3, 4).

      >>> import jax.numpy as jnp
      >>> k, v = jnp.array([[[1.0, 0.0]]]), jnp.array([[[3.0, 4.0]]])
      >>> log_w, none = jnp.full((1, 1, 2), jnp.log(0.5)), jnp.zeros((1, 1, 2))
      >>> y, s = wkv7_step(k, log_w, k, v, none, none, jnp.array([[[[0.0, 1.0], [1.0, 0.0]]]]))
      >>> s[0, 0].tolist()
      [[3.0, 0.5], [4.5, 0.0]]
      >>> y[0, 0].tolist()
      [3.0, 4.5]
    """
    inputs, state, flags = _arrays((r, log_w, k, v, a, b), s, valid, reset)
    _check("wkv7_step", "[B, H, N]", inputs, state, flags)
    inputs = {n: x[:, None] for n, x in inputs.items()}
    y, s_next = _apply(_auto, inputs, state, **{n: None if x is None else x[:, None] for n, x in flags.items()})
    return y[:, 0], s_next


def _named(name: str, min_log_w: float) -> Callable[..., tuple[Array, Array]]:
    """The implementation for this range of decays."""
    if not LOWEST_LOG_W <= min_log_w <= 0:
        raise ValueError(
            f"wkv7: min_log_w must be in {LOWEST_LOG_W}..0, got {min_log_w}: take jnp.maximum(log_w, {LOWEST_LOG_W}), "
            "a decay of 2e-9, where log_w is lower"
        )
    wide = min_log_w < NARROW_LOG_W
    if name == AUTO:
        return _auto_wide if wide else _auto
    return (WIDE if wide else IMPLEMENTATIONS)[name]


def _arrays(
    vectors: tuple[ArrayLike, ...], state: ArrayLike, valid: ArrayLike | None, reset: ArrayLike | None
) -> tuple[dict[str, Array], Array, dict[str, Array | None]]:
    """(vectors by name, state, flags by name) as arrays of JAX."""
    inputs = {n: jnp.asarray(x) for n, x in zip(NAMES, vectors, strict=True)}
    flags = {n: None if x is None else jnp.asarray(x) for n, x in (("valid", valid), ("reset", reset))}
    return inputs, jnp.asarray(state), flags


def _apply(
    op: Callable[..., tuple[Array, Array]],
    inputs: dict[str, Array],
    state: Array,
    valid: Array | None,
    reset: Array | None,
) -> tuple[Array, Array]:
    """The op with padding replaced by tokens of zeros, which leave the state alone."""
    if valid is not None:
        inputs = {n: _masked(x, valid) for n, x in inputs.items()}
    y, s_last = op(*_alike(*inputs.values(), state), reset)
    return (y if valid is None else _masked(y, valid)), s_last


def _masked(x: Array, valid: Array) -> Array:
    """x [B, T, H, N] with zeros where valid [B, T] is False; blocks NaN in both directions."""
    return jnp.where(valid[:, :, None, None], x, jnp.zeros_like(x))


def _alike(*arrays: Array) -> list[Array]:
    """The arrays as they are; under `shard_map`, differing along every mesh axis along which any of them does."""
    axes = frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
    return [varying(x, axes) for x in arrays]


def _check(op: str, axes: str, inputs: dict[str, Array], state: Array, flags: dict[str, Array | None]) -> None:
    """Raises ValueError, one line, for the first array that does not fit the others. axes: of the inputs, in words."""
    rank = axes.count(",") + 1
    for name, x in inputs.items():
        if x.ndim != rank or x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{op}: {name} must be float32 or bfloat16 {axes}, got {jax.typeof(x)}")
    r, v = inputs["r"], inputs["v"]
    if rank == 4 and r.shape[1] < 1:
        raise ValueError(f"{op}: at least one token is needed, got r {jax.typeof(r)}")
    for name, x in inputs.items():
        shape = (*r.shape[:-1], (v if name == "v" else r).shape[-1])
        if x.shape != shape:
            raise ValueError(f"{op}: {name} must have shape {shape} to fit r and v, got {x.shape}")
    state_shape = (r.shape[0], r.shape[-2], v.shape[-1], r.shape[-1])
    if state.shape != state_shape or state.dtype != jnp.float32:
        name = "s0" if rank == 4 else "s"
        raise ValueError(
            f"{op}: {name} must be float32 {state_shape} (value axis before key axis), got {jax.typeof(state)}"
        )
    for name, x in flags.items():
        if x is not None and (x.shape != r.shape[:-2] or x.dtype != jnp.bool_):
            raise ValueError(f"{op}: {name} must be bool {r.shape[:-2]}, got {jax.typeof(x)}")
