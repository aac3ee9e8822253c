"""The kernels for TPU beyond the common suite: sizes of heads, memory, refusals, when auto takes them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pallas_tpu
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import tpu, wkv7
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.chunked import op as chunked
from pallas_kernels.tpu import rules

FLOAT32 = 1e-5
NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")
auto = partial(wkv7, implementation="auto")


def wkv7_without_flags(r, log_w, k, v, a, b, s0, reset=None, *, implementation):
    return wkv7(r, log_w, k, v, a, b, s0, reset=reset, implementation=implementation)


def value_and_gradients(op, example, reset=None):
    """{"y", "s_T", and gradients by input name}."""

    dy, ds = jnp.asarray(example.dy), jnp.asarray(example.ds)

    def run(*arrays):
        (y, s_last), pull = jax.vjp(lambda *x: op(*x, reset), *arrays)
        return {"y": y, "s_T": s_last, **dict(zip(NAMES, pull((dy, ds)), strict=True))}

    return jax.jit(run)(*(jnp.asarray(example.inputs[n]) for n in NAMES))


def structs(size, value=None, dtype=jnp.bfloat16, length=128):
    """The shapes of the seven inputs."""
    shape = (2, length, 3)
    key = jax.ShapeDtypeStruct((*shape, size), dtype)
    v = jax.ShapeDtypeStruct((*shape, value or size), dtype)
    return key, key, key, v, key, key, jax.ShapeDtypeStruct((2, 3, value or size, size), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "regime"), [(Shape(2, 131, 3, 64, 64), "strong"), (Shape(1, 67, 3, 128, 128), "aligned")]
)
def test_odd_heads_and_both_sizes_on_poisoned_memory_without_races(shape, regime, rng, oracle, error):
    params = pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    example = make_example(rng, shape, regime)
    reset = rng.random((shape.batch, shape.length)) < 0.05
    result = value_and_gradients(tpu.make_op(interpret=params), example, jnp.asarray(reset))
    expected = oracle(example, np.ones_like(reset), reset)
    errors = {n: error.max(result[n], x) for n, x in expected.items()}
    assert max(errors.values()) <= FLOAT32, errors


@pytest.mark.parametrize("shape", [Shape(2, 131, 3, 64, 64), Shape(1, 67, 2, 128, 128)])
def test_matrix_units_of_256(shape, rng, oracle, error):
    """The form for wider units, with resets; the gradient of the state alone too."""
    example = make_example(rng, shape)
    reset = rng.random((shape.batch, shape.length)) < 0.05
    op = tpu.make_op(interpret=True, unit=256)
    result, expected = value_and_gradients(op, example, jnp.asarray(reset)), oracle(example, np.ones_like(reset), reset)
    vectors = [jnp.asarray(example.inputs[n]) for n in NAMES[:6]]
    _, pull = jax.vjp(lambda s0: op(*vectors, s0, jnp.asarray(reset)), jnp.asarray(example.inputs["s0"]))
    result["alone"], expected["alone"] = pull((jnp.asarray(example.dy), jnp.asarray(example.ds)))[0], expected["s0"]
    errors = {n: error.max(result[n], x) for n, x in expected.items()}
    assert max(errors.values()) <= FLOAT32, errors


@pytest.mark.parametrize(
    ("shape", "regime"),
    [
        (Shape(2, 131, 3, 64, 64), "strong"),
        (Shape(1, 64, 4, 64, 64), "model"),
        (Shape(1, 131, 2, 128, 128), "aligned"),
    ],
)
def test_half_of_a_chunk_runs_a_chunk_ahead(shape, regime, rng, as_bfloat16, oracle, error):
    """bfloat16 on matrix units of 256: scratch that is not initialised reaches no result, nor does a race."""
    params = pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    example = as_bfloat16(make_example(rng, shape, regime))
    reset = rng.random((shape.batch, shape.length)) < 0.05
    op = tpu.make_op(interpret=params, unit=256)
    result, expected = value_and_gradients(op, example, jnp.asarray(reset)), oracle(example, np.ones_like(reset), reset)
    vectors = [jnp.asarray(example.inputs[n]) for n in NAMES[:6]]
    (y, s_last), pull = jax.vjp(lambda s0: op(*vectors, s0, jnp.asarray(reset)), jnp.asarray(example.inputs["s0"]))
    np.testing.assert_array_equal(y, result["y"])  # what is saved for a full backward changes nothing
    np.testing.assert_array_equal(s_last, result["s_T"])
    result["alone"], expected["alone"] = pull((jnp.asarray(example.dy), jnp.asarray(example.ds)))[0], expected["s0"]
    for name, wanted in expected.items():
        limit = 8e-2 if regime == "aligned" and name in ("a", "b") else 5e-3
        assert error.l2(result[name], wanted) <= limit, name


@pytest.mark.parametrize(("kind", "unit"), [("TPU v6 lite", 256), ("TPU v5 lite", 128), (None, 128)])
def test_the_form_is_that_of_the_chip_that_a_mesh_names(kind, unit):
    device = kind and jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert rules.matrix_unit() == unit


def test_several_packs_and_programs(rng, error):
    """More heads than one program has, so that packs are interleaved and programs divide the heads."""
    example = make_example(rng, Shape(1, 70, 18, 64, 64))
    results = [value_and_gradients(op, example) for op in (tpu.make_op(interpret=True), chunked.wkv7_chunked)]
    errors = {n: error.max(results[0][n], np.asarray(x)) for n, x in results[1].items()}
    assert max(errors.values()) <= FLOAT32, errors


@pytest.mark.parametrize(("size", "value"), [(64, 128), (32, 32)])
def test_refuses_other_heads_by_name(size, value):
    with pytest.raises(ValueError, match=f"'tpu' has kernels for K = V = 64 or 128, got K = {size}, V = {value}"):
        jax.eval_shape(partial(wkv7, implementation="tpu"), *structs(size, value))


@pytest.mark.parametrize("length", [1, 65])
def test_refuses_other_devices_in_one_line(length):
    with pytest.raises(ValueError, match="'tpu' runs on a TPU only, but this program is compiled for cpu") as caught:
        jax.jit(partial(wkv7, implementation="tpu")).lower(*structs(64, length=length))
    assert "\n" not in str(caught.value)


def loss(*arrays):
    y, s_last = auto(*arrays)
    return jnp.sum(y.astype(jnp.float32)) + jnp.sum(s_last)


def layers(x, *rest):
    """The op under remat in a scan."""
    s0 = rest[-1]
    body = jax.checkpoint(lambda x, s: auto(x, *rest[:-1], s))
    return loss_of(jax.lax.scan(body, x, jnp.stack([s0, s0])))


def loss_of(outputs):
    return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(outputs))


@pytest.mark.parametrize(
    ("function", "kernels"),
    [
        (auto, {"forward"}),
        (jax.vmap(auto), {"forward"}),
        (jax.value_and_grad(loss, argnums=6), {"forward", "state_backward"}),
        (jax.grad(loss, argnums=tuple(range(7))), {"forward_saving", "backward"}),
        (jax.grad(layers), {"forward_saving", "backward"}),
    ],
    ids=["plain", "vmap", "state", "full", "scan of remat"],
)
def test_lowered_for_a_tpu_auto_takes_these_kernels(function, kernels):
    args = structs(64)
    if function is not auto and kernels == {"forward"}:
        args = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in args]
    text = export.export(jax.jit(function), platforms=["tpu"])(*args).mlir_module()
    named = {"forward", "forward_saving", "backward", "state_backward"}
    assert {n for n in named if f'kernel_name = "wkv7_{n}"' in text} == kernels


@pytest.mark.parametrize(("platform", "size"), [("cpu", 64), ("tpu", 16)])
def test_auto_is_chunked_where_there_is_no_kernel(platform, size):
    text = export.export(jax.jit(auto), platforms=[platform])(*structs(size)).mlir_module()
    assert "tpu_custom_call" not in text


def test_auto_equals_the_scan(rng, error):
    """On CPU, where it saves for `chunked` what another platform would save for its kernels."""
    example = make_example(rng, Shape(1, 70, 2, 64, 64))
    plain, scan = (
        value_and_gradients(partial(wkv7_without_flags, implementation=name), example) for name in ("auto", "scan")
    )
    errors = {n: error.max(plain[n], np.asarray(x)) for n, x in scan.items()}
    assert max(errors.values()) <= FLOAT32, errors


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_auto_lowers_under_shard_map_with_its_checks(platform):
    """The state is the same on all shards of the batch, so that its gradient is a sum over them."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    sharded = jax.shard_map(
        lambda *x: auto(*x[:6], x[6][:1]), mesh=mesh, in_specs=(*(rows,) * 6, PartitionSpec()), out_specs=(rows, rows)
    )
    grad = jax.jit(jax.grad(lambda *x: loss_of(sharded(*x)), argnums=tuple(range(7))))
    text = grad.trace(*structs(64)).lower(lowering_platforms=(platform,)).as_text()
    assert "all_reduce" in text
    assert "all_gather" not in text
    assert ("wkv7_backward" in text) == (platform != "cpu")


def test_several_platforms_at_once_are_refused_with_a_way_out():
    f = jax.jit(partial(wkv7, implementation="tpu"))
    with pytest.raises(ValueError, match="compiled for tpu and cpu: export for one platform at a time, or take 'ch"):
        export.export(f, platforms=["tpu", "cpu"])(*structs(64))


def test_under_shard_map_by_batch_and_heads(rng, error):
    example = make_example(rng, Shape(2, 65, 4, 64, 64))
    mesh = jax.make_mesh((2, 2), ("data", "heads"), axis_types=(AxisType.Auto,) * 2)
    tokens, state = PartitionSpec("data", None, "heads"), PartitionSpec("data", "heads")
    op = tpu.make_op(interpret=True)
    specs = ((*(tokens,) * 6, state, None), (tokens, state))
    sharded = jax.shard_map(op, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    results = [value_and_gradients(f, example) for f in (sharded, op)]
    errors = {n: error.max(results[0][n], np.asarray(x)) for n, x in results[1].items()}
    assert max(errors.values()) <= FLOAT32, errors
