"""One step of decoding: every kernel against the specification, and in place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import decode
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.reference import Token, wkv7_scan

STEPS = {
    "chosen by platform": decode.step,
    "cpu": decode.xla_step,
    "gpu": partial(decode.gpu_step, interpret=True),
    "tpu": partial(decode.tpu_step, interpret=True),
}


def example(rng, shape, dtype=np.float32):
    inputs = make_example(rng, shape).inputs
    *vectors, s0 = (jnp.asarray(x, jnp.float32 if n == "s0" else dtype) for n, x in inputs.items())
    return vectors, s0


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("shape", "reset"), [(Shape(3, 1, 2, 16, 16), [True, False, True]), (Shape(2, 1, 8, 64, 64), None)]
)
def test_equals_the_scan(name, shape, reset, rng):
    vectors, s0 = example(rng, shape)
    flag = None if reset is None else jnp.asarray(reset)
    token = Token(*(x[:, 0] for x in vectors), reset=flag)
    y, s = jax.jit(STEPS[name])(token, s0)
    expected_y, expected_s = wkv7_scan(*vectors, s0, None if flag is None else flag[:, None])
    np.testing.assert_allclose(y, expected_y[:, 0], rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(expected_y))))
    np.testing.assert_allclose(s, expected_s, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(expected_s))))


@pytest.mark.parametrize("name", STEPS)
def test_bfloat16_vectors_keep_a_float32_state(name, rng):
    vectors, s0 = example(rng, Shape(2, 1, 2, 16, 16), jnp.bfloat16)
    y, s = jax.jit(STEPS[name])(Token(*(x[:, 0] for x in vectors), reset=None), s0)
    expected_y, expected_s = wkv7_scan(*vectors, s0)
    assert (y.dtype, s.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(s, expected_s, rtol=0, atol=1e-5)
    np.testing.assert_allclose(y.astype(np.float32), expected_y[:, 0].astype(np.float32), rtol=2**-7, atol=1e-6)


def test_a_loop_of_steps_equals_the_whole_row(rng):
    vectors, s0 = example(rng, Shape(2, 5, 2, 16, 16))
    step = jax.jit(decode.forward)
    s, ys = s0, []
    for t in range(5):
        y, s = step(OpInputs(*(x[:, t : t + 1] for x in vectors), reset=None), s)
        ys.append(y)
    expected_y, expected_s = wkv7_scan(*vectors, s0)
    np.testing.assert_allclose(jnp.concatenate(ys, 1), expected_y, rtol=0, atol=1e-5)
    np.testing.assert_allclose(s, expected_s, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("some_gpu")
@pytest.mark.parametrize(
    ("platform", "kernel"), [("cpu", None), ("cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu_custom")]
)
def test_each_platform_gets_its_kernel_and_writes_the_donated_state(platform, kernel):
    x, s0 = jax.ShapeDtypeStruct((2, 8, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 8, 64, 64), jnp.float32)
    token = Token(*[x] * 6, reset=None)
    text = jax.jit(decode.step, donate_argnums=1).trace(token, s0).lower(lowering_platforms=(platform,)).as_text()
    assert "tf.aliasing_output" in text
    assert ("custom_call" in text) == (kernel is not None)
    assert kernel is None or kernel in text
