"""Fresh random numbers, a float64 oracle of the op and its gradients, and the implementations that one suite binds."""

import os
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import gpu, tpu
from pallas_kernels.bench.oracle import oracle as float64_oracle
from pallas_kernels.chunked import op as chunked
from pallas_kernels.chunked import parallel
from pallas_kernels.gpu.tuning import BFLOAT16

ACCELERATOR_SCHEDULE = "chunked, accelerator schedule"
FORMS = {f"gpu, {form}": BFLOAT16._replace(form=form) for form in ("sequential", "divided")}
"""GPU kernels of these forms in every rule that has them, in every dtype."""


@pytest.fixture
def rng():
    """New numbers in every run; set WKV7_TEST_SEED to the seed that a failing test printed to see it again."""
    seed = int(os.environ.get("WKV7_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"WKV7_TEST_SEED={seed}")
    return np.random.default_rng(seed)


HARDWARE = {"gpu": "gpu", "triton": "gpu", "tpu": "tpu"}
"""The backend that an implementation needs, unless it can be interpreted."""


@pytest.fixture(scope="session", params=[*pallas_kernels.IMPLEMENTATIONS, ACCELERATOR_SCHEDULE, *FORMS])
def implementation(request):
    """The name of an implementation of `wkv7`; the schedule for accelerators and forms of the GPU kernels are more.

    Kernels for hardware that is not here run interpreted.
    """
    bound = {
        ACCELERATOR_SCHEDULE: lambda: chunked.make_op(lambda rule: getattr(parallel, rule)),
        "gpu": lambda: gpu.make_op(interpret=True),
        **{name: partial(gpu.make_op, tuning, jax.default_backend() != "gpu") for name, tuning in FORMS.items()},
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


@pytest.fixture(scope="session")
def oracle():
    """oracle(example, valid, reset) -> {"y", "s_T", "r", "log_w", ..., "s0"}: outputs, and gradients by input name."""
    return float64_oracle


@pytest.fixture(scope="session")
def as_bfloat16():
    """as_bfloat16(example): its vectors in bfloat16; the state and its cotangent stay float32."""

    def rounded(example):
        inputs = {n: x if n == "s0" else x.astype(jnp.bfloat16) for n, x in example.inputs.items()}
        return example._replace(inputs=inputs, dy=example.dy.astype(jnp.bfloat16))

    return rounded


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
