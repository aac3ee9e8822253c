import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import RWKV7, RWKV7Config, unstack_blocks, zero_state
from rwkv7_jax.checkpoint import flat_to_params, infer_config, params_to_flat, weights_hash

configs = st.builds(
    lambda heads, size, **rest: RWKV7Config(n_embd=heads * size, head_size=size, **rest),
    heads=st.integers(1, 3),
    size=st.integers(2, 5),
    vocab_size=st.integers(2, 9),
    n_layer=st.integers(1, 4),
    dim_ffn=st.integers(2, 9),
    decay_lora=st.integers(2, 5),
    aaa_lora=st.integers(2, 5),
    mv_lora=st.integers(2, 5),
    gate_lora=st.integers(2, 5),
)


@settings(max_examples=30)
@given(config=configs, seed=st.integers(0, 99), unused=st.booleans())
def test_round_trip_and_dimensions(config, seed, unused, make_flat, same_bits):
    flat = make_flat(config, seed, unused=unused)
    names = list(flat)
    np.random.default_rng(seed).shuffle(names)
    shuffled = {name: flat[name] for name in names}
    inferred = infer_config(shuffled)
    if config.n_layer == 1 and not unused:
        inferred = dataclasses.replace(inferred, mv_lora=config.mv_lora)
    assert inferred == config
    back = params_to_flat(flat_to_params(shuffled))
    used = {name: array for name, array in flat.items() if not name.startswith("blocks.0.att.v") or "value" in name}
    same_bits(back, used)


def test_tree_is_the_models_own(small, make_flat):
    model = RWKV7(small)
    tokens, state = jnp.zeros((1, 2), jnp.int32), zero_state(small, 1)
    wanted = jax.eval_shape(lambda key: model.init(key, tokens, state)["params"], jax.random.key(0))
    params = flat_to_params(make_flat(dtype=np.float32))
    assert jax.tree.structure(params) == jax.tree.structure(wanted)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, wanted)


def test_embedding_and_first_block_are_not_copied(make_flat):
    flat = make_flat()
    params = flat_to_params(flat)
    assert np.shares_memory(params["emb"]["weight"], flat["emb.weight"])
    assert np.shares_memory(params["head"]["weight"], flat["head.weight"])
    assert np.shares_memory(params["block_0"]["att"]["key"]["weight"], flat["blocks.0.att.key.weight"])


def test_hash_depends_on_the_weights_alone(make_flat):
    flat = make_flat(unused=True)
    known = weights_hash(flat_to_params(flat))
    bare = {name: array for name, array in reversed(flat.items()) if name[:14] != "blocks.0.att.v" or "value" in name}
    assert len(bare) == len(flat) - 3
    squeezed = {name: array.reshape([n for n in array.shape if n != 1]) for name, array in bare.items()}
    assert weights_hash(flat_to_params(bare)) == known
    assert weights_hash(flat_to_params(squeezed)) == known
    assert weights_hash(unstack_blocks(flat_to_params(flat))) == known
    assert weights_hash(jax.tree.map(jnp.asarray, flat_to_params(flat))) == known
    for name in ("emb.weight", "blocks.0.ln0.bias", "blocks.2.ffn.x_k"):
        other = dict(flat)
        other[name] = flat[name].copy()
        other[name].flat[3] += 1
        assert weights_hash(flat_to_params(other)) != known
    swapped = flat | {"blocks.1.ln1.bias": flat["blocks.2.ln1.bias"], "blocks.2.ln1.bias": flat["blocks.1.ln1.bias"]}
    assert weights_hash(flat_to_params(swapped)) != known
    single = {name: array.astype(np.float32) for name, array in flat.items()}
    assert weights_hash(flat_to_params(single)) != known


@pytest.mark.parametrize(
    "name", ["emb.weight", "head.weight", "blocks.0.ln0.weight", "blocks.1.att.v1", "blocks.2.att.r_k", "ln_out.bias"]
)
def test_missing_tensor_is_named(name, make_flat, one_line_error):
    flat = make_flat()
    del flat[name]
    with one_line_error("missing", name):
        flat_to_params(flat)


def test_unknown_and_misshapen_tensors_are_named(make_flat, one_line_error):
    with one_line_error("blocks.1.att.extra"):
        flat_to_params(make_flat() | {"blocks.1.att.extra": np.zeros(3, np.float32)})
    with one_line_error("blocks.2.att.key.weight", "[12, 13]"):
        flat_to_params(make_flat() | {"blocks.2.att.key.weight": np.zeros((12, 13), np.float32)})
    with one_line_error("blocks.2.att.w1"):
        flat_to_params(make_flat() | {"blocks.2.att.w1": np.zeros((5, 12), np.float32)})
    with one_line_error("head.weight", "int8"):
        flat_to_params(make_flat() | {"head.weight": np.zeros((11, 12), np.int8)})
    with one_line_error("layer 1"):
        flat_to_params({n: a for n, a in make_flat().items() if not n.startswith("blocks.1.")})
    with one_line_error("blocks.2.ln1.bias", "float32"):
        flat_to_params(make_flat() | {"blocks.2.ln1.bias": np.zeros(12, np.float32)})


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("blocks.0.att.time_mix_k", "blocks.0.att.time_decay"), "RWKV-4"),
        (("blocks.0.att.time_decay", "blocks.0.att.gate.weight"), "RWKV-5"),
        (("blocks.0.att.time_maa_x", "blocks.0.att.time_decay", "blocks.0.att.gate.weight"), "RWKV-6"),
        (("blocks.0.att.time_state",), "state file"),
    ],
)
def test_other_versions_are_recognised(names, version, one_line_error):
    flat = {name: np.zeros((4, 4), np.float32) for name in ("emb.weight", *names)}
    with one_line_error(version):
        infer_config(flat)
