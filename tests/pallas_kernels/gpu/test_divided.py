"""The GPU kernels that are divided over time, interpreted: bfloat16 in several chunks, what is saved, when they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gpu
from pallas_kernels.bench.check import ALIGNED, ROUNDED, compiled, error, in_dtype
from pallas_kernels.bench.shapes import REGIMES, Shape, make_example
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.launch import Launch
from pallas_kernels.gpu.tuning import BFLOAT16

SHAPE = Shape(1, 257, 2, 64, 64)
DIVIDED = BFLOAT16._replace(form="divided")


@pytest.fixture(scope="module")
def run():
    return compiled(gpu.make_op(DIVIDED, interpret=True))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("resets", [0.0, 0.02])
def test_bfloat16_over_several_chunks(regime, resets, run, rng, oracle):
    example = in_dtype(make_example(rng, SHAPE, regime), "bfloat16")
    reset = rng.random((SHAPE.batch, SHAPE.length)) < resets
    wanted, result = oracle(example, np.ones_like(reset), reset), run(example, reset)
    for name, y in (wanted | {"s0 alone": wanted["s0"]}).items():
        limit = ALIGNED if regime == "aligned" and name in ("a", "b") else ROUNDED
        assert error(result[name], y, "bfloat16") <= limit, name


def test_a_block_of_values_of_the_scan_is_tuned_alone(rng):
    shape = Shape(1, 97, 1, 16, 40)
    example, nowhere = make_example(rng, shape), np.zeros((1, 97), bool)
    results = [
        compiled(gpu.make_op(DIVIDED._replace(divided=DIVIDED.divided._replace(block=block)), interpret=True))
        for block in (16, 64)
    ]
    first, second = (run(example, nowhere) for run in results)
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


@pytest.mark.parametrize("form", [None, "divided"])
def test_states_alone_are_saved(form):
    """One every 32 tokens and no u, whichever form the forward has: as many bytes as one every 64 tokens and u."""
    x = jax.ShapeDtypeStruct((2, 130, 3, 64), jnp.bfloat16)
    s0 = jax.ShapeDtypeStruct((2, 3, 64, 64), jnp.float32)
    op = gpu.make_op(BFLOAT16._replace(form=form), interpret=True)
    residuals = jax.eval_shape(lambda *z: jax.vjp(op, *z)[1], *[x] * 6, s0)
    shapes = [z.shape for z in jax.tree.leaves(residuals) if z.shape != x.shape and z.size]
    assert shapes == [(5, 2, 3, 64, 64)]
    assert all(z.dtype == jnp.bfloat16 for z in jax.tree.leaves(residuals))


def inputs(batch: int, length: int, heads: int, dtype: str) -> OpInputs:
    x = jax.ShapeDtypeStruct((batch, length, heads, 64), dtype)
    return OpInputs(x, x, x, x, x, x, None)  # type: ignore[arg-type]


def forms(x: OpInputs, **changes: object) -> list[str]:
    """Of forward, backward and state_backward."""
    launch = Launch(BFLOAT16._replace(**changes) if changes else None)
    return [launch.form(rule, x) for rule in ("forward", "backward", "state_backward")]


def test_which_form_runs():
    """In bfloat16 the full backward is divided; the rest where there are few heads and many tokens."""
    many, few, short = inputs(8, 4096, 32, "bfloat16"), inputs(1, 4096, 12, "bfloat16"), inputs(1, 99, 12, "bfloat16")
    assert forms(many) == ["sequential", "divided", "sequential"]
    assert forms(few) == ["divided"] * 3
    assert forms(short) == ["sequential", "divided", "sequential"]
    assert forms(inputs(1, 4096, 12, "float32")) == ["small"] * 3
    assert forms(short, form="divided") == ["divided"] * 3
    assert forms(few, form="sequential") == ["sequential", "divided", "sequential"]
    assert forms(few, form="small") == ["small"] * 3
    assert forms(few, checkpoint=64) == ["small"] * 3


@pytest.mark.parametrize(("kind", "form", "rows"), [("A100", "sequential", 32), ("H200", "divided", 64)])
def test_ampere_has_less_of_a_state_in_registers(kind, form, rows):
    """Compiled for a GPU that a mesh names: no forward is divided on Ampere."""
    device = jax.sharding.AbstractDevice(device_kind=f"NVIDIA {kind}-SXM4", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert forms(inputs(1, 4096, 12, "bfloat16")) == [form, "divided", "divided"]
        assert Launch().plan(inputs(8, 4096, 32, "bfloat16")).value_tile == rows
