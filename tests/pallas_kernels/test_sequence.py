"""The op with time cut over devices: outputs, gradients, resets, padding, what is sent, what s0's gradient needs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import sequence, wkv7, wkv7_sequence_parallel
from pallas_kernels.bench.shapes import Shape, make_example

DEVICES, TIME = 8, 40
SHAPE = Shape(2, TIME, 2, 8, 4)
S0 = 6


def mesh_of(count, **others):
    sizes, names = (count, *others.values()), ("time", *others)
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def cut_op(mesh, rows=None, heads=None, check_vma=True, **options):
    """op(vectors, s0, flags) -> (y, s_T) with time cut over the mesh."""
    tokens, states, flags = P(rows, "time", heads), P(rows, heads), P(rows, "time")

    def local(vectors, s0, marks):
        return wkv7_sequence_parallel(*vectors, s0, axis_name="time", **marks, **options)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(tokens, states, flags), out_specs=(tokens, states), check_vma=check_vma
    )


def whole_op(**options):
    return lambda vectors, s0, marks: wkv7(*vectors, s0, **marks, **options)


def gradients(op, example, marks, wanted=tuple(range(7))):
    """Outputs, and gradients of random sums of both outputs."""

    def total(*arrays):
        y, s = op(arrays[:6], arrays[6], marks)
        return jnp.sum(y * example.dy) + jnp.sum(s * example.ds), (y, s)

    arrays = [jnp.asarray(x) for x in example.inputs.values()]
    return jax.jit(jax.value_and_grad(total, argnums=wanted, has_aux=True))(*arrays)


def assert_close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(y))))


def marks_of(rng, valid=True, reset=True):
    """Whole chunks of padding, padding at the end and in between; resets at the begin of chunks and inside of them."""
    on = np.ones((SHAPE.batch, TIME), bool)
    on[0, 5:10] = False
    on[1, 33:] = False
    on &= rng.random(on.shape) > 0.1
    starts = np.zeros_like(on)
    starts[0, [0, 15, 17]] = True
    starts[1, 7] = True
    marks = (("valid", on, valid), ("reset", starts, reset))
    return {name: jnp.asarray(mark) for name, mark, used in marks if used}


@pytest.fixture(params=["chain", "doubling"])
def way(request, monkeypatch):
    """Both ways to carry states along the axis."""
    if request.param == "doubling":
        monkeypatch.setattr(sequence, "MOST_CHAINED", 1)
    return request.param


@pytest.mark.parametrize("regime", ["model", "aligned"])
def test_outputs_and_gradients_are_those_of_one_device(way, regime, rng):
    example = make_example(rng, SHAPE, regime)
    assert_close(gradients(cut_op(mesh_of(DEVICES)), example, {}), gradients(whole_op(), example, {}))


@pytest.mark.parametrize(("valid", "reset"), [(True, False), (False, True)])
def test_padding_or_resets(valid, reset, rng):
    example, marks = make_example(rng, SHAPE), marks_of(rng, valid, reset)
    assert_close(gradients(cut_op(mesh_of(DEVICES)), example, marks), gradients(whole_op(), example, marks))


def test_padding_and_resets(way, rng):
    example, marks = make_example(rng, SHAPE), marks_of(rng)
    assert_close(gradients(cut_op(mesh_of(DEVICES)), example, marks), gradients(whole_op(), example, marks))


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_devices(count, way, rng):
    example = make_example(rng, SHAPE._replace(length=2 * count))
    assert_close(gradients(cut_op(mesh_of(count)), example, {}), gradients(whole_op(), example, {}))


def test_a_token_a_device(rng):
    example = make_example(rng, SHAPE._replace(length=DEVICES))
    assert_close(gradients(cut_op(mesh_of(DEVICES)), example, {}), gradients(whole_op(), example, {}))


@pytest.mark.parametrize("check_vma", [True, False])
def test_beside_rows_and_heads(check_vma, rng):
    example, marks = make_example(rng, SHAPE), marks_of(rng)
    op = cut_op(mesh_of(2, rows=2, heads=2), "rows", "heads", check_vma)
    assert_close(gradients(op, example, marks), gradients(whole_op(), example, marks))


def test_an_implementation_by_name_and_strong_decays(rng):
    example, marks = make_example(rng, SHAPE), marks_of(rng)
    example.inputs["log_w"] *= 30
    op = cut_op(mesh_of(4), implementation="scan", min_log_w=-20.0)
    assert_close(gradients(op, example, marks), gradients(whole_op(implementation="scan"), example, marks))


def test_bfloat16(rng):
    example = make_example(rng, SHAPE)
    arrays = [jnp.asarray(x, jnp.float32 if name == "s0" else jnp.bfloat16) for name, x in example.inputs.items()]

    def total(op, *arrays):
        y, s = op(arrays[:6], arrays[6], {})
        return jnp.sum(y.astype(jnp.float32) * example.dy) + jnp.sum(s * example.ds)

    found, wanted = (
        jax.jit(jax.grad(functools.partial(total, op), argnums=tuple(range(7))))(*arrays)
        for op in (cut_op(mesh_of(DEVICES)), whole_op())
    )
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= 5e-3 * np.linalg.norm(y)


def test_the_gradient_of_the_state_alone_needs_neither_keys_nor_values(way, rng):
    """Forward they turn everything into NaN."""
    example = make_example(rng, SHAPE)
    wanted = gradients(whole_op(), example, {}, (S0,))[1]
    for name in ("k", "v"):
        example.inputs[name][:] = np.nan
    (_, (y, _)), found = gradients(cut_op(mesh_of(DEVICES)), example, {}, (S0,))
    assert np.isnan(y).all()
    assert_close(found, wanted)


def sends(function, *arrays):
    """(pairs, shape) of every permutation of the compiled program."""
    text = jax.jit(function).lower(*arrays).compile().as_text()
    found = re.findall(r"= f32\[([\d,]*)\]\S* collective-permute\(.*?source_target_pairs=\{([\d,{}]*)\}", text)
    return [(re.findall(r"\{(\d+),(\d+)\}", pairs), shape) for shape, pairs in found]


def sum_of_outputs(mesh):
    op = cut_op(mesh)
    return lambda *arrays: sum(jnp.sum(jnp.sin(x)) for x in op(arrays[:6], arrays[6], {}))


@pytest.mark.parametrize(("wanted", "passes"), [((S0,), 2), (tuple(range(7)), 2), (None, 1)])
def test_one_state_crosses_each_boundary_in_a_pass(wanted, passes, rng):
    arrays = [jnp.asarray(x) for x in make_example(rng, SHAPE).inputs.values()]
    function = sum_of_outputs(mesh_of(DEVICES))
    found = sends(jax.grad(function, argnums=wanted) if wanted else function, *arrays)
    crossed = sorted(tuple(map(int, pair)) for pairs, _ in found for pair in pairs)
    forward = [(i, i + 1) for i in range(DEVICES - 1)]
    assert crossed == sorted(forward + [(j, i) for i, j in forward] * (passes - 1))
    assert {shape for _, shape in found} == {"2,2,4,8"}


def test_doubling_takes_few_rounds(monkeypatch, rng):
    monkeypatch.setattr(sequence, "MOST_CHAINED", 1)
    arrays = [jnp.asarray(x) for x in make_example(rng, SHAPE).inputs.values()]
    found = sends(sum_of_outputs(mesh_of(DEVICES)), *arrays)
    # Two rounds of map and state, one of the state alone, and the state from each device to the next.
    assert sorted(shape for _, shape in found) == ["2,2,4,8"] * 4 + ["2,2,8,8"] * 2


def test_shapes_that_do_not_fit_are_one_line(rng):
    example = make_example(rng, SHAPE)
    example.inputs["a"] = example.inputs["a"][..., :-1]
    with pytest.raises(ValueError, match=r"wkv7: a must have shape \(2, 5, 2, 8\)"):
        gradients(cut_op(mesh_of(DEVICES)), example, {})
