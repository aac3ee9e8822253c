"""Fresh random numbers, a float64 oracle of the op and its gradients, and the implementations that one suite binds."""

import os
import types

import jax
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import gpu, tpu
from pallas_kernels.chunked import op as chunked
from pallas_kernels.chunked import parallel

ACCELERATOR_SCHEDULE = "chunked, accelerator schedule"


@pytest.fixture
def rng():
    """New numbers in every run; set WKV7_TEST_SEED to the seed that a failing test printed to see it again."""
    seed = int(os.environ.get("WKV7_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"WKV7_TEST_SEED={seed}")
    return np.random.default_rng(seed)


HARDWARE = {"gpu": "gpu", "triton": "gpu", "tpu": "tpu"}
"""The backend that an implementation needs, unless it can be interpreted."""


@pytest.fixture(scope="session", params=[*pallas_kernels.IMPLEMENTATIONS, ACCELERATOR_SCHEDULE])
def implementation(request):
    """The name of an implementation of `wkv7`; the schedule for accelerators is bound here on CPU as one more.

    Kernels for hardware that is not here run interpreted.
    """
    bound = {
        ACCELERATOR_SCHEDULE: lambda: chunked.make_op(lambda rule: getattr(parallel, rule)),
        "gpu": lambda: gpu.make_op(interpret=True),
        "tpu": lambda: tpu.make_op(interpret=True),
    }
    here = HARDWARE.get(request.param) == jax.default_backend()
    if request.param in HARDWARE and request.param not in bound and not here:
        pytest.skip(f"{request.param} cannot be interpreted and there is no GPU; see triton/test_triton.py")
    with pytest.MonkeyPatch.context() as patch:
        if request.param in bound and not here:
            patch.setitem(pallas_kernels.IMPLEMENTATIONS, request.param, jax.jit(bound[request.param]()))
        yield request.param


@pytest.fixture(scope="session")
def fit(implementation):
    """fit(shape): the shape, with heads of a size that the implementation has kernels for."""
    return lambda shape: shape._replace(key=64, value=64) if implementation == "tpu" else shape


def oracle_forward(x, valid, reset):
    """All states before and after each token, and y: float64, token by token."""
    w, s, before, after = np.exp(x["log_w"]), x["s0"], [], []
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


def oracle_backward(x, valid, reset, before, after, dy, ds):
    """Gradients of (y * dy).sum() + (s_T * ds).sum() by the reverse recurrence, written by hand."""
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
    grads["s0"] = ds
    return grads


@pytest.fixture(scope="session")
def oracle():
    """oracle(example, valid, reset) -> {"y", "s_T", "r", "log_w", ..., "s0"}: outputs, and gradients by input name."""

    def run(example, valid, reset):
        x = {n: np.asarray(z, np.float64) for n, z in example.inputs.items()}
        x = {n: z if n == "s0" else np.where(valid[:, :, None, None], z, 0.0) for n, z in x.items()}
        y, s, before, after = oracle_forward(x, valid, reset)
        dy, ds = np.asarray(example.dy, np.float64), np.asarray(example.ds, np.float64)
        dy = np.where(valid[:, :, None, None], dy, 0.0)
        return {"y": y, "s_T": s, **oracle_backward(x, valid, reset, before, after, dy, ds)}

    return run


@pytest.fixture
def some_gpu():
    """Names a GPU to lower for, which JAX 0.11 wants to know where there is none."""
    if jax.__version_info__ < (0, 11):
        yield
        return
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.fixture(scope="session")
def error():
    """Two measures of a difference: `max` relative to the largest entry, `l2` relative to the norm.

    Where all of the expected entries are exactly zero, the difference itself.
    """

    def largest(x, y):
        return float(np.max(np.abs(np.asarray(x, np.float64) - y)) / (np.max(np.abs(y)) or 1.0))

    def l2(x, y):
        return float(np.linalg.norm(np.asarray(x, np.float64) - y) / (np.linalg.norm(y) or 1.0))

    return types.SimpleNamespace(max=largest, l2=l2)
