"""What `wkv7` refuses, and that the line says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS, wkv7
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
