"""Meshes of eight simulated devices: the table's partitions, and the same numbers as on one device."""

import dataclasses
import functools
import itertools
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rwkv7_jax import RWKV7, RWKV7Config, functional, sharding, zero_state

CONFIG = RWKV7Config(
    vocab_size=48, n_layer=3, n_embd=32, head_size=4, dim_ffn=64, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8
)
MODEL = RWKV7(CONFIG)
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
ALONG = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8 and sizes[3] > 1]
"""Every mesh of eight devices that cuts the tokens of a row."""
SOME = ALONG if os.environ.get("RWKV7_ALL_MESHES") else [(1, 1, 1, 8), (2, 1, 2, 2)]
BATCH, TIME = 8, 12


def init(key):
    return MODEL.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1))["params"]


@functools.cache
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), jnp.float32), init(jax.random.key(0))
    )


def inputs():
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), zero_state(CONFIG, BATCH)
    )
    tokens = jnp.asarray(rng.integers(0, 48, (BATCH, TIME)), jnp.int32)
    return tokens, jnp.asarray(rng.random((BATCH, TIME)) < 0.8), state


def loss(params, state, tokens, valid, reset=None):
    apply: Any = MODEL.apply
    logits, last = apply({"params": params}, tokens, state, valid=valid, reset=reset)
    return jnp.sum(jnp.where(valid[..., None], jnp.sin(logits), 0.0)) + jnp.sum(jnp.cos(last.wkv)), last


def both(*args):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*args)


@functools.cache
def single():
    tokens, valid, state = inputs()
    return both(params(), state, tokens, valid)


def on_mesh(shape, *rest):
    mesh, weights = sharding.make_mesh(*shape), params()
    with jax.set_mesh(mesh):
        return both(jax.tree.map(sharding.place, weights, sharding.shardings(weights, mesh)), *rest)


def assert_close(found, expected):
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(shape):
    tokens, valid, state = inputs()
    assert_close(on_mesh(shape, state, tokens, valid), single())


@functools.cache
def ragged():
    """Rows of 29 tokens, which no mesh divides: resets, padding at the end and in the midst, whole chunks of it too."""
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.integers(0, 48, (BATCH, 29)), jnp.int32)
    valid, reset = rng.random((BATCH, 29)) < 0.9, rng.random((BATCH, 29)) < 0.05
    valid[0, 17:], valid[1, 3:20], valid[2, :9], reset[3, 8] = False, False, False, True
    rest = (inputs()[2], tokens, jnp.asarray(valid), jnp.asarray(reset))
    return rest, both(params(), *rest)


@pytest.mark.parametrize("shape", SOME, ids=str)
def test_rows_cut_along_their_tokens_give_the_numbers_of_one_device(shape):
    rest, expected = ragged()
    assert_close(on_mesh(shape, *rest), expected)


def test_what_crosses_boundaries_is_kept_for_the_backward_pass():
    """With remat a layer's states still cross each boundary once forward and once backward."""
    config = dataclasses.replace(CONFIG, remat="block", n_layer=2)
    model, mesh = RWKV7(config), sharding.make_mesh(1, 1, 1, 8)
    state, tokens = zero_state(config, 1), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init({"params": key}, tokens, state)["params"], jax.random.key(0))

    def total(state, params):
        return functional.hidden(model, params, tokens, state)[0].sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(total)).lower(state, shapes).compile().as_text()
    states = re.findall(r"= f32\[1,8,4,4\]\S* collective-permute\(", str(text))
    assert len(states) == config.n_layer * 2 * 7


def test_rows_shorter_than_the_mesh_stay_whole():
    with jax.set_mesh(sharding.make_mesh(1, 1, 1, 8)):
        assert sharding.missing_tokens(1) == 0
        assert sharding.token_partition(1, 1) is None
        assert sharding.missing_tokens(9) == 7
        assert sharding.token_partition(1, 16) == P(sharding.ROWS, "sequence")
    assert sharding.token_partition(1, 16) is None


def test_chunks_of_rows_lie_where_their_tokens_do():
    x = jnp.arange(4 * 15, dtype=jnp.int32).reshape(4, 15)
    mesh = sharding.make_mesh(2, 1, 1, 4)
    with jax.set_mesh(mesh):
        (chunks,), count = jax.jit(sharding.chunks_as_rows)((x,))
        cut = jax.device_put(jnp.pad(x, ((0, 0), (0, 1))), jax.NamedSharding(mesh, P(sharding.ROWS, "sequence")))
    assert int(count) == 4
    np.testing.assert_array_equal(chunks[1 * 4 + 2], x[2, 4:8])
    here, there = ({s.device: set(np.asarray(s.data).ravel()) for s in one.addressable_shards} for one in (chunks, cut))
    assert here == there


def test_parameters_are_created_in_their_shards():
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        made = jax.jit(lambda key: sharding.pin(init(key)))(jax.random.key(0))
    for leaf, wanted in zip(jax.tree.leaves(made), jax.tree.leaves(sharding.shardings(made, mesh)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    weight = made["blocks"]["ffn"]["key"]["weight"]
    assert weight.addressable_shards[0].data.shape == (2, 32, 16)
    np.testing.assert_array_equal(weight, jax.jit(init)(jax.random.key(0))["blocks"]["ffn"]["key"]["weight"])


def test_every_matrix_and_every_head_is_cut():
    specs = sharding.partitions(jax.eval_shape(init, jax.random.key(0)), dict.fromkeys(sharding.AXES, 2))
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): spec for path, spec in leaves}
    whole = {name for name, spec in named.items() if not any(spec)}
    assert all("/x_" in name or "ln" in name for name in whole), whole
    assert named["blocks/att/key/weight"] == P(None, "tensor", "fsdp")
    assert named["block_0/att/r_k"] == P("tensor", None)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("wkv", (3, 8, 4, 4), P(None, "tensor", None, None)),
        ("opt_state/1/0/mu/wkv/s_ext", (3, 8, 4, 6), P(None, "tensor", None, None)),
        ("opt_state/decorrelator/wkv", (3, 8, 4, 4), P(None, "tensor", None, None)),
        ("wkv/gamma", (3, 8), P(None, "tensor")),
        ("wkv", (3, 7, 4, 4), P(None, None, None, None)),
        ("att_shift", (3, 32), P(None, None)),
        ("opt_state/0/mu/blocks/att/output/weight", (2, 32, 32), P(None, "fsdp", "tensor")),
        ("step", (), P()),
    ],
)
def test_the_table(path, shape, spec):
    assert sharding.partition(path, shape, dict.fromkeys(sharding.AXES, 2)) == spec


@pytest.mark.parametrize("sizes", [(3, 1, 1, 1), (-1, -1, 1, 1), (0, 1, 1, 1), (2, 2, 1, 1), (2, 1, 1, 3)])
def test_sizes_that_do_not_make_up_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh: data="):
        sharding.resolve_sizes(sizes, 8)


def test_sizes_are_inferred():
    assert sharding.resolve_sizes((-1, 2, 2, 1), 8) == (2, 2, 2, 1)
    assert math.prod(sharding.resolve_sizes((4, -1, 1, 2), 64)) == 64


def test_devices_that_send_most_are_neighbours():
    mesh = sharding.make_mesh(1, 1, 2, 4)
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert ids[0, 0, :, 0].tolist() == [0, 1]
    assert ids[0, 0, 0].tolist() == [0, 2, 4, 6]


def test_the_op_exchanges_nothing():
    mesh = sharding.make_mesh(2, 2, 2)
    shape = (8, 16, 8, 4)
    vectors, s0 = (jax.ShapeDtypeStruct(shape, jnp.float32),) * 6, jax.ShapeDtypeStruct((8, 8, 4, 4), jnp.float32)

    def total(vectors, s0):
        return sharding.wkv7_on_mesh(*vectors, s0)  # pyright: ignore[reportCallIssue]

    rows = jax.NamedSharding(mesh, P(sharding.ROWS, None, "tensor"))
    heads = jax.NamedSharding(mesh, P(sharding.ROWS, "tensor"))
    with jax.set_mesh(mesh):
        text = jax.jit(total, in_shardings=((rows,) * 6, heads)).lower(vectors, s0).compile().as_text()
    assert text is not None
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
