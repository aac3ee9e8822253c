"""The GPU kernels, interpreted on a CPU: beyond the shared suite, what their tuning must not change; refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gpu, wkv7
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.launch import Launch, tile, value_tile
from pallas_kernels.gpu.tuning import BFLOAT16, FLOAT32

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")
RELEASED = Shape(4, 97, 2, 64, 64)
KERNELS = ["wkv7_forward", "wkv7_prepare_backward", "wkv7_state_gradients", "wkv7_gradients"]


@functools.cache
def value_and_gradients(tuning, state_only=False):
    op = gpu.make_op(tuning, interpret=True)

    def run(arrays, dy, ds, reset):
        if state_only:
            _, pull = jax.vjp(lambda s0: op(*arrays[:6], s0, reset), arrays[6])
            return dict(zip(["s0"], pull((dy, ds)), strict=True))
        (y, s_last), pull = jax.vjp(lambda *x: op(*x, reset), *arrays)
        return {"y": y, "s_T": s_last, **dict(zip(NAMES, pull((dy, ds)), strict=True))}

    return jax.jit(run)


def run(tuning, example, reset, state_only=False):
    arrays = [jnp.asarray(x) for x in example.inputs.values()]
    dy, ds = jnp.asarray(example.dy), jnp.asarray(example.ds)
    return value_and_gradients(tuning, state_only)(arrays, dy, ds, jnp.asarray(reset))


@pytest.mark.parametrize(
    "tuning",
    [
        FLOAT32._replace(chunk=32, checkpoint=32, value_block=64),
        FLOAT32._replace(checkpoint=16),
    ],
    ids=["chunk 32", "state of every chunk, value axis divided"],
)
def test_tuning_changes_speed_only(tuning, rng, oracle, error):
    shape = Shape(2, 65, 1, 16, 48)
    example = make_example(rng, shape)
    reset = rng.random((2, 65)) < 0.1
    expected = oracle(example, np.ones_like(reset), reset)
    result = run(tuning, example, reset)
    errors = {n: error.max(result[n], x) for n, x in expected.items()}
    assert max(errors.values()) <= 1e-5, errors
    assert error.max(run(tuning, example, reset, state_only=True)["s0"], expected["s0"]) <= 1e-5


@pytest.mark.parametrize("regime", ["model", "strong", "aligned"])
def test_bfloat16_at_the_released_head_size(regime, rng, as_bfloat16, oracle, error):
    """In one kernel, divided over the value axis too, as it is where there are so few heads."""
    example = as_bfloat16(make_example(rng, RELEASED, regime))
    nowhere = np.zeros((RELEASED.batch, RELEASED.length), bool)
    result = run(BFLOAT16._replace(form="small"), example, nowhere)
    for name, expected in oracle(example, ~nowhere, nowhere).items():
        limit = 8e-2 if regime == "aligned" and name in ("a", "b") else 5e-3
        assert error.l2(result[name], expected) <= limit, name


def test_the_small_form_saves_u_and_states_in_bfloat16():
    x = jax.ShapeDtypeStruct((2, 130, 3, 64), jnp.bfloat16)
    s0 = jax.ShapeDtypeStruct((2, 3, 64, 64), jnp.float32)
    op = gpu.make_op(BFLOAT16._replace(form="small"), interpret=True)
    residuals = jax.eval_shape(lambda *z: jax.vjp(op, *z)[1], *[x] * 6, s0)
    shapes = {(z.shape, z.dtype.type) for z in jax.tree.leaves(residuals)}
    assert ((5, 2, 3, 64, 64), jnp.bfloat16) in shapes
    assert all(z.dtype == jnp.bfloat16 for z in jax.tree.leaves(residuals))


def test_few_heads_divide_the_value_axis():
    assert [value_tile(heads, 64) for heads in (1, 32, 64, 65, 256)] == [16, 16, 32, 64, 64]
    assert value_tile(1, 16) == 16
    assert [tile(size) for size in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]


@pytest.mark.parametrize(("size", "tile", "warps"), [(8, 32, 4), (32, 32, 4), (40, 64, 8)])
def test_narrow_heads_in_float32_take_wide_tiles_and_few_warps(size, tile, warps):
    """Square tiles, or more warps than they have work for, spilt up to 512 bytes."""
    x = jax.ShapeDtypeStruct((1, 20, 2, size), "float32")
    inputs = OpInputs(x, x, x, x, x, x, None)
    launch = Launch()
    assert launch.small_plan(inputs).key_tile == tile
    assert launch.tuned(inputs).warps == launch.tuned(inputs).backward_warps == warps


def test_refusals():
    def call(implementation, key):
        x = jnp.zeros((1, 3, 1, key))
        return wkv7(*[x] * 6, jnp.zeros((1, 1, key, key)), implementation=implementation)

    with pytest.raises(ValueError, match="K and V up to 64, got K = 128") as caught:
        call("gpu", 128)
    assert "\n" not in str(caught.value)
    assert gpu.supports(64, 48)
    assert not gpu.supports(64, 65)
    with pytest.raises(ValueError, match="'gpu' runs on an NVIDIA GPU only, but this program is compiled for cpu"):
        call("gpu", 64)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("some_gpu")
@pytest.mark.parametrize(("size", "kernels"), [(64, KERNELS), (128, [])])
def test_auto_on_cuda_is_this_kernel_where_it_fits(size, kernels):
    x, s0 = jax.ShapeDtypeStruct((1, 40, 2, size), jnp.bfloat16), jax.ShapeDtypeStruct((1, 2, size, size), jnp.float32)

    def loss(*arrays):
        y, s_last = wkv7(*arrays, implementation="auto")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(s_last)

    text = (
        jax.jit(jax.grad(loss, argnums=tuple(range(7))))
        .trace(*[x] * 6, s0)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert text.count("__gpu$xla.gpu.triton") == len(kernels)
    assert all(name in text for name in kernels)
