"""The GPU kernels for strong decays, interpreted, beyond the common suite in chunked/test_levels.py: sizes that are no
power of two, bfloat16 in every regime, tuning, what is saved, which kernels run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gpu, wkv7
from pallas_kernels.bench.check import ALIGNED, EXACT, ROUNDED, compiled, error, in_dtype
from pallas_kernels.bench.shapes import GATE, REGIMES, Shape, make_example
from pallas_kernels.gpu.tuning import BFLOAT16, FLOAT32

ODD = Shape(2, 70, 3, 8, 40)
RELEASED = Shape(1, 131, 2, 64, 64)
KERNELS = {"forward_wide", "prepare_wide", "state_backward_wide", "gradients_wide"}


def resets(rng, shape, rate=0.05):
    return rng.random((shape.batch, shape.length)) < rate


def errors(run, example, reset, oracle, dtype):
    wanted = oracle(example, np.ones_like(reset), reset)
    result = run(example, reset)
    return {n: error(result[n], y, dtype) for n, y in (wanted | {"s0 alone": wanted["s0"]}).items()}


@pytest.mark.parametrize(
    "changes", [{}, {"chunk": 32, "block": 64}], ids=["value axis divided", "chunk 32, all of the value axis"]
)
def test_odd_sizes_and_tuning(changes, rng, oracle):
    tuning = FLOAT32._replace(wide=FLOAT32.wide._replace(**changes))
    run = compiled(gpu.make_op(tuning, interpret=True, wide=True))
    found = errors(run, make_example(rng, ODD, GATE), resets(rng, ODD), oracle, "float32")
    assert max(found.values()) <= EXACT, found


@pytest.fixture(scope="module")
def rounded():
    return compiled(gpu.make_op(interpret=True, wide=True))


@pytest.mark.parametrize("regime", [*REGIMES, GATE])
def test_bfloat16(regime, rounded, rng, oracle):
    """With log_w in bfloat16 too, in the regimes of RWKV-7 as well."""
    example = in_dtype(make_example(rng, RELEASED, regime), "bfloat16")
    for name, found in errors(rounded, example, resets(rng, RELEASED), oracle, "bfloat16").items():
        assert found <= (ALIGNED if regime == "aligned" and name in ("a", "b") else ROUNDED), name


def test_a_mixture_counts_as_float32(rounded, rng, oracle):
    """log_w in bfloat16, as a model in mixed precision may leave it."""
    example = make_example(rng, RELEASED, GATE)
    half = np.asarray(example.inputs["log_w"], jnp.bfloat16)
    example = example._replace(inputs=example.inputs | {"log_w": half})
    found = errors(rounded, example, resets(rng, RELEASED), oracle, "float32")
    assert found.pop("log_w") <= 2**-8, "rounded to its own dtype"
    assert max(found.values()) <= EXACT, found


def test_a_state_a_chunk_and_u_are_saved():
    x = jax.ShapeDtypeStruct((2, 130, 3, 64), jnp.bfloat16)
    s0 = jax.ShapeDtypeStruct((2, 3, 64, 64), jnp.float32)
    op = gpu.make_op(interpret=True, wide=True)
    residuals = jax.tree.leaves(jax.eval_shape(lambda *z: jax.vjp(op, *z)[1], *[x] * 6, s0))
    chunks = -(-130 // BFLOAT16.wide.chunk)
    assert [z.shape for z in residuals if z.shape != x.shape and z.size] == [(chunks, 2, 3, 64, 64)]
    assert len([z for z in residuals if z.shape == x.shape]) == 7
    assert all(z.dtype == jnp.bfloat16 for z in residuals)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("some_gpu")
@pytest.mark.parametrize(("size", "lowest", "kernels"), [(64, -20.0, KERNELS), (64, -2.7, set()), (256, -20.0, set())])
def test_auto_on_cuda_takes_them_for_strong_decays_where_they_fit(size, lowest, kernels):
    x, s0 = jax.ShapeDtypeStruct((1, 40, 2, size), jnp.bfloat16), jax.ShapeDtypeStruct((1, 2, size, size), jnp.float32)

    def loss(*arrays):
        y, s_last = wkv7(*arrays, min_log_w=lowest, implementation="auto")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(s_last)

    text = (
        jax.jit(jax.grad(loss, argnums=tuple(range(7))))
        .trace(*[x] * 6, s0)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert {name for name in KERNELS if f"wkv7_{name}" in text} == kernels
