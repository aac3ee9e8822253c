"""The recurrence and its gradient in NumPy's float64, token by token: what every implementation is checked against."""

from collections.abc import Mapping

import numpy as np

from pallas_kernels.bench.shapes import Example

Arrays = dict[str, np.ndarray]


def oracle(example: Example, valid: np.ndarray, reset: np.ndarray) -> Arrays:
    """Computes the outputs and all gradients of (y * dy).sum() + (s_T * ds).sum().

    Args:
      example: inputs and cotangents.
      valid: bool [B, T]; False marks padding.
      reset: bool [B, T]; True makes the state zero before that token.

    Returns:
      {"y", "s_T"} and the gradients by the names of the inputs, float64.
    """
    x = {n: np.asarray(z, np.float64) for n, z in example.inputs.items()}
    x = {n: z if n == "s0" else np.where(valid[:, :, None, None], z, 0.0) for n, z in x.items()}
    y, s, before, after = forward(x, valid, reset)
    dy, ds = np.asarray(example.dy, np.float64), np.asarray(example.ds, np.float64)
    dy = np.where(valid[:, :, None, None], dy, 0.0)
    return {"y": y, "s_T": s, **backward(x, valid, reset, before, after, dy, ds)}


def forward(
    x: Mapping[str, np.ndarray], valid: np.ndarray, reset: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """(y, the last state, all states before each token, all states after it)."""
    w, s = np.exp(x["log_w"]), x["s0"]
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    y = np.zeros_like(x["v"])
    for t in range(y.shape[1]):
        s = np.where(reset[:, t, None, None, None], 0.0, s)
        before.append(s)
        r, k, v, a, b = (x[n][:, t] for n in ("r", "k", "v", "a", "b"))
        sa = np.einsum("bhvk,bhk->bhv", s, a)
        new = s * w[:, t, :, None] + sa[..., None] * b[:, :, None] + v[..., None] * k[:, :, None]
        s = np.where(valid[:, t, None, None, None], new, s)
        after.append(s)
        y[:, t] = np.einsum("bhvk,bhk->bhv", s, r) * valid[:, t, None, None]
    return y, s, before, after


def backward(
    x: Mapping[str, np.ndarray],
    valid: np.ndarray,
    reset: np.ndarray,
    before: list[np.ndarray],
    after: list[np.ndarray],
    dy: np.ndarray,
    ds: np.ndarray,
) -> Arrays:
    """The gradients by the reverse recurrence, written by hand."""
    w, grads = np.exp(x["log_w"]), {n: np.zeros_like(z) for n, z in x.items()}
    for t in reversed(range(dy.shape[1])):
        on = valid[:, t, None, None]
        r, k, v, a, b, d = (z[:, t] for z in (x["r"], x["k"], x["v"], x["a"], x["b"], dy))
        total = ds + d[..., None] * r[:, :, None]
        dsa = np.einsum("bhvk,bhk->bhv", total, b)
        sa = np.einsum("bhvk,bhk->bhv", before[t], a)
        here = {
            "r": np.einsum("bhv,bhvk->bhk", d, after[t]),
            "log_w": np.sum(total * before[t], 2) * w[:, t],
            "k": np.einsum("bhv,bhvk->bhk", v, total),
            "v": np.einsum("bhvk,bhk->bhv", total, k),
            "a": np.einsum("bhv,bhvk->bhk", dsa, before[t]),
            "b": np.einsum("bhv,bhvk->bhk", sa, total),
        }
        for name, z in here.items():
            grads[name][:, t] = z * on
        ds = np.where(on[..., None], total * w[:, t, :, None] + dsa[..., None] * a[:, :, None], ds)
        ds = np.where(reset[:, t, None, None, None], 0.0, ds)
    return {**grads, "s0": ds}
