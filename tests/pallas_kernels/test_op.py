"""What `wkv7` and `wkv7_step` refuse, and that the line says why; `wkv7_step` is `wkv7` over one token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS, wkv7, wkv7_step
from pallas_kernels.bench.shapes import Shape, make_example

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")


@pytest.fixture
def inputs(rng):
    return dict(make_example(rng, Shape(2, 3, 2, 4, 6)).inputs)


def call(inputs, **options):
    return jax.eval_shape(lambda *x: wkv7(*x, **options), *(inputs[n] for n in NAMES))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("r", lambda x: x[0], "r must be float32 or bfloat16 [B, T, H, N]"),
        ("k", lambda x: x.astype(np.float16), "k must be float32 or bfloat16"),
        ("a", lambda x: x[:, :2], "a must have shape (2, 3, 2, 4)"),
        ("v", lambda x: x[:, :, :1], "v must have shape (2, 3, 2, 6)"),
        ("s0", lambda x: x.swapaxes(2, 3), "value axis before key axis"),
        ("s0", lambda x: x.astype(jnp.bfloat16), "s0 must be float32"),
    ],
)
def test_wrong_array(inputs, name, change, message):
    with pytest.raises(ValueError, match=r"^wkv7: ") as caught:
        call(inputs | {name: change(inputs[name])})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_tokens(inputs):
    with pytest.raises(ValueError, match="at least one token"):
        call({n: x if n == "s0" else x[:, :0] for n, x in inputs.items()})


@pytest.mark.parametrize("lowest", [-20.5, 0.1, float("nan"), float("-inf")])
def test_decays_out_of_range(inputs, lowest):
    with pytest.raises(ValueError, match=r"^wkv7: min_log_w must be in -20.0..0, got .*: take jnp.maximum") as caught:
        call(inputs, min_log_w=lowest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["valid", "reset"])
@pytest.mark.parametrize("value", [np.ones((2, 3), np.int32), np.ones((3, 2), bool)])
def test_wrong_flag(inputs, flag, value):
    with pytest.raises(ValueError, match=rf"^wkv7: {flag} must be bool \(2, 3\)"):
        call(inputs, **{flag: value})


def test_unknown_implementation_lists_the_known_ones(inputs):
    with pytest.raises(ValueError, match="unknown wkv7 implementation 'fast'") as caught:
        call(inputs, implementation="fast")
    assert all(name in str(caught.value) for name in IMPLEMENTATIONS)


def test_shapes_and_dtypes(inputs):
    y, s_last = call(inputs | {"v": inputs["v"].astype(jnp.bfloat16)})
    assert (y.shape, y.dtype) == ((2, 3, 2, 6), jnp.bfloat16)
    assert (s_last.shape, s_last.dtype) == ((2, 2, 6, 4), jnp.float32)


@pytest.fixture
def token(rng):
    """Arrays of `wkv7` over one token."""
    return {n: jnp.asarray(x) for n, x in make_example(rng, Shape(3, 1, 2, 4, 6)).inputs.items()}


def step(arrays, **options):
    return wkv7_step(*(x if n == "s0" else x[:, 0] for n, x in arrays.items()), **options)


@pytest.mark.parametrize("flags", [{}, {"valid": [True, False, True], "reset": [True, True, False]}])
def test_step_equals_one_token(token, flags):
    now = {n: jnp.asarray(x) for n, x in flags.items()}
    y, s = step(token, **now)
    expected_y, expected_s = wkv7(*token.values(), **{n: x[:, None] for n, x in now.items()})
    np.testing.assert_allclose(y, expected_y[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(s, expected_s, rtol=0, atol=1e-6)


def test_gradients_of_a_step_are_those_of_one_token(token):
    def loss(op):
        return lambda *x: sum(jnp.sum(z**2) for z in op(*x))

    def of_step(*x):
        return step(dict(zip(NAMES, x, strict=True)))

    argnums = tuple(range(7))
    results = [jax.jit(jax.grad(loss(op), argnums=argnums))(*token.values()) for op in (of_step, wkv7)]
    for x, expected in zip(*results, strict=True):
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(expected))))


def test_a_donated_state_is_written_in_place():
    x, s = jax.ShapeDtypeStruct((2, 8, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 8, 64, 64), jnp.float32)
    lowered = jax.jit(wkv7_step, donate_argnums=6).trace(*[x] * 6, s).lower(lowering_platforms=("tpu",)).as_text()
    assert "tf.aliasing_output" in lowered
    assert "tpu_custom" in lowered


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": np.zeros((3, 1, 2, 4), np.float32)}, "r must be float32 or bfloat16 [B, H, N]"),
        ({"k": np.zeros((3, 2, 5), np.float32)}, "k must have shape (3, 2, 4)"),
        ({"s": np.zeros((3, 2, 4, 6), np.float32)}, "s must be float32 (3, 2, 6, 4) (value axis before key axis)"),
        ({"reset": np.zeros((3, 1), bool)}, "reset must be bool (3,)"),
    ],
)
def test_step_refuses_in_one_line(token, change, message):
    arrays = {"s" if n == "s0" else n: x if n == "s0" else x[:, 0] for n, x in token.items()}
    with pytest.raises(ValueError, match=r"^wkv7_step: ") as caught:
        wkv7_step(**(arrays | change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
