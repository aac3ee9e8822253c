"""The kernels for strong decays beyond the common suite in chunked/test_levels.py: sizes, memory, which one runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pallas_tpu

from pallas_kernels import gated_delta_rule, tpu, wkv7
from pallas_kernels.bench.shapes import Shape, make_example

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")
FLOAT32 = 1e-5


@pytest.mark.parametrize("shape", [Shape(2, 70, 3, 64, 64), Shape(1, 131, 3, 128, 128)])
def test_odd_heads_and_both_sizes_on_poisoned_memory_without_races(shape, rng, oracle, error):
    params = pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    example = make_example(rng, shape)
    decays = -np.exp(rng.uniform(-6, 3, example.inputs["log_w"].shape)).clip(0, 20).astype(np.float32)
    example = example._replace(inputs=example.inputs | {"log_w": decays})
    reset = rng.random((shape.batch, shape.length)) < 0.05
    op = tpu.make_op(interpret=params, wide=True)

    def run(*arrays):
        (y, s_last), pull = jax.vjp(lambda *x: op(*x, jnp.asarray(reset)), *arrays)
        return {
            "y": y,
            "s_T": s_last,
            **dict(zip(NAMES, pull((jnp.asarray(example.dy), jnp.asarray(example.ds))), strict=True)),
        }

    result = jax.jit(run)(*(jnp.asarray(example.inputs[n]) for n in NAMES))
    errors = {n: error.max(result[n], x) for n, x in oracle(example, np.ones_like(reset), reset).items()}
    assert max(errors.values()) <= FLOAT32, errors


def structs(size):
    key = jax.ShapeDtypeStruct((2, 128, 3, size), jnp.bfloat16)
    return *[key] * 6, jax.ShapeDtypeStruct((2, 3, size, size), jnp.float32)


@pytest.mark.parametrize(
    ("wanted", "kernels"), [(6, {"forward", "state_backward"}), (tuple(range(7)), {"forward_saving", "backward"})]
)
def test_lowered_for_a_tpu_auto_takes_these_kernels(wanted, kernels):
    def loss(*arrays):
        y, s_last = wkv7(*arrays, min_log_w=-20.0, implementation="auto")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(s_last)

    text = export.export(jax.jit(jax.value_and_grad(loss, argnums=wanted)), platforms=["tpu"])(
        *structs(64)
    ).mlir_module()
    named = {"forward", "forward_saving", "backward", "state_backward"}
    assert {n for n in named if f'kernel_name = "wkv7_{n}_wide"' in text} == kernels
    assert not any(f'kernel_name = "wkv7_{n}"' in text for n in named)


def test_the_gated_delta_rule_takes_them_too():
    r, log_w, _, v, _, _, s0 = structs(64)
    gate = jax.ShapeDtypeStruct(r.shape[:3], jnp.float32)
    op = jax.jit(partial(gated_delta_rule, implementation="auto"))
    text = export.export(op, platforms=["tpu"])(r, log_w, v, gate, gate, s0).mlir_module()
    assert 'kernel_name = "wkv7_forward_wide"' in text


def test_on_a_cpu_it_is_chunked():
    op = jax.jit(partial(wkv7, min_log_w=-20.0, implementation="auto"))
    assert "custom_call @tpu" not in export.export(op, platforms=["cpu"])(*structs(64)).mlir_module()
