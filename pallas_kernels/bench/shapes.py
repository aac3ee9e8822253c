"""Shapes and random inputs that the tests and the benchmark share."""

from typing import NamedTuple

import numpy as np

STRONGEST_LOG_DECAY = -float(np.exp(-0.5))
REGIMES = ("model", "strong", "aligned")
GATE = "gate"
"""A regime beside RWKV-7's own: log_w down to -20."""


class Shape(NamedTuple):
    """B, T, H, K, V."""

    batch: int
    length: int
    heads: int
    key: int
    value: int


class Example(NamedTuple):
    """Numpy float32 inputs of the op, and cotangents of its outputs."""

    inputs: dict[str, np.ndarray]
    dy: np.ndarray
    ds: np.ndarray


BENCH = (Shape(4, 512, 4, 64, 64), Shape(1, 2048, 12, 64, 64))
TEST = tuple(Shape(2, length, 2, 8, 12) for length in (1, 2, 31, 64, 65, 127, 257))
TEST_RELEASED = Shape(1, 97, 2, 64, 64)


def make_example(rng: np.random.Generator, shape: Shape, regime: str = "model") -> Example:
    """Draws random inputs with the statistics of one regime.

    "model": as in the released architecture (a = -kk, b = kk * iclr, kk of unit length); "strong": every decay at its
    strongest; "aligned": hardly any decay, one key direction for all tokens and iclr near 1, where errors pile up;
    "gate": decays as other models have them, half of them weaker than e^-1, one in six e^-20.
    """
    batch, length, heads, key, value = shape
    vectors = (batch, length, heads, key)
    logits = rng.standard_normal(vectors)
    log_w = {
        "model": STRONGEST_LOG_DECAY / (1 + np.exp(-2 * logits)),
        "strong": np.full(vectors, STRONGEST_LOG_DECAY),
        "aligned": np.full(vectors, -1e-3),
        GATE: -np.exp(3 * logits).clip(0, 20),
    }[regime]
    kk = rng.standard_normal(vectors)
    iclr = 1 / (1 + np.exp(-rng.standard_normal(vectors)))
    if regime == "aligned":
        kk, iclr = np.broadcast_to(kk[:, :1], vectors), np.full(vectors, 0.999)
    kk = kk / np.linalg.norm(kk, axis=-1, keepdims=True)
    values = (batch, length, heads, value)
    inputs = {
        "r": rng.standard_normal(vectors),
        "log_w": log_w,
        "k": 0.5 * rng.standard_normal(vectors),
        "v": rng.standard_normal(values),
        "a": -kk,
        "b": kk * iclr,
        "s0": 0.3 * rng.standard_normal((batch, heads, value, key)),
    }
    dy, ds = rng.standard_normal(values), rng.standard_normal((batch, heads, value, key))
    return Example({n: x.astype(np.float32) for n, x in inputs.items()}, dy.astype(np.float32), ds.astype(np.float32))
