"""Meshes of eight simulated devices: the table's partitions, and the same numbers as on one device."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rwkv7_jax import RWKV7, RWKV7Config, sharding, zero_state

CONFIG = RWKV7Config(
    vocab_size=48, n_layer=3, n_embd=32, head_size=4, dim_ffn=64, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8
)
MODEL = RWKV7(CONFIG)
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
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


def loss(params, state, tokens, valid):
    apply: Any = MODEL.apply
    logits, last = apply({"params": params}, tokens, state, valid=valid)
    return jnp.sum(jnp.where(valid[..., None], jnp.sin(logits), 0.0)) + jnp.sum(jnp.cos(last.wkv)), last


@functools.cache
def single():
    tokens, valid, state = inputs()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params(), state, tokens, valid)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(shape):
    mesh = sharding.make_mesh(*shape)
    tokens, valid, state = inputs()
    with jax.set_mesh(mesh):
        spread = jax.tree.map(sharding.place, params(), sharding.shardings(params(), mesh))
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(spread, state, tokens, valid)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(single()), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


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


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (2, 2, 1)])
def test_sizes_that_do_not_make_up_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh: data="):
        sharding.resolve_sizes(sizes, 8)


def test_sizes_are_inferred():
    assert sharding.resolve_sizes((-1, 2, 2), 8) == (2, 2, 2)
    assert math.prod(sharding.resolve_sizes((4, -1, 1), 64)) == 64


def test_the_op_exchanges_nothing():
    mesh = sharding.make_mesh(2, 2, 2)
    shape = (8, 16, 8, 4)
    vectors, s0 = (jax.ShapeDtypeStruct(shape, jnp.float32),) * 6, jax.ShapeDtypeStruct((8, 8, 4, 4), jnp.float32)

    def total(vectors, s0):
        return sharding.wkv7_by_rows_and_heads(*vectors, s0)  # pyright: ignore[reportCallIssue]

    rows = jax.NamedSharding(mesh, P(sharding.ROWS, None, "tensor"))
    heads = jax.NamedSharding(mesh, P(sharding.ROWS, "tensor"))
    with jax.set_mesh(mesh):
        text = jax.jit(total, in_shardings=((rows,) * 6, heads)).lower(vectors, s0).compile().as_text()
    assert text is not None
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
