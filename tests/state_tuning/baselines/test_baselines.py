"""Baselines: nothing changes at their start, they learn through the same train step, and what comes out is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, State, zero_state
from rwkv7_jax.checkpoint import load_state, save_state
from rwkv7_jax.wkv_state import Offset, WKVState
from state_tuning.baselines import lora, methods
from state_tuning.baselines.adapters import AdaptedRWKV7
from state_tuning.baselines.lora import Lora
from state_tuning.baselines.methods import Sizes
from state_tuning.core import surgery, train
from tests.helpers import CONFIG, MODEL, logits, random_batch, random_state, weights
from tests.state_tuning.test_no_weight_gradient import matrix_shapes, products

TUNE = train.TuneConfig(learning_rate=0.03, steps=8, warmup=1, loss_chunk=8)
SIZES = Sizes(prefix=5, lora=Lora(rank=3, projections=("att/receptance", "att/value", "ffn/key", "ffn/value")))
KEY = jax.random.key(7)


@functools.cache
def lm(name):
    return methods.build(name, MODEL, weights(), TUNE, KEY, SIZES)


def nudged(tree, size=0.2):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten([x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def entered(baseline, tree, batch):
    rows = batch["tokens"].shape[0]
    run = jax.jit(lambda p, t: baseline.model.apply({"params": p}, batch["tokens"], baseline.method.graft(t, rows))[0])
    return run(weights(), tree)


@pytest.mark.parametrize("name", ["state_offset", "s0_offset", "low_rank_state", "prefix", "lora"])
def test_it_learns_through_the_same_step_and_finishes_as_what_was_trained(name):
    baseline, batch = lm(name), random_batch()
    optimizer = train.make_optimizer(TUNE)
    step = train.make_train_step(baseline.model, optimizer, TUNE, baseline.method)
    tuned = train.init(optimizer, baseline.method.init())
    before = weights()["block_0"]["att"]["key"]["weight"].copy()
    losses = []
    for _ in range(TUNE.steps):
        tuned, metrics = step(weights(), tuned, batch)
        losses.append(float(metrics["loss"]))
        assert bool(metrics["applied"])
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(weights()["block_0"]["att"]["key"]["weight"], before)
    params, state = baseline.finish(weights(), tuned.trainable)
    plain = logits(params, batch["tokens"], surgery.broadcast(state, 4))
    np.testing.assert_allclose(plain, entered(baseline, tuned.trainable, batch), atol=3e-5)


@pytest.mark.parametrize("name", ["s0", "state_offset", "s0_offset", "low_rank_state", "lora"])
def test_at_its_start_it_is_the_model_bit_for_bit(name):
    baseline, batch = lm(name), random_batch()
    zero = logits(weights(), batch["tokens"], zero_state(CONFIG, 4))
    np.testing.assert_array_equal(entered(baseline, baseline.method.init(), batch), zero)
    assert not np.array_equal(entered(baseline, nudged(baseline.method.init()), batch), zero)


def test_a_prefix_compiled_to_a_state_gives_the_logits_of_the_prefix():
    prefix, text = jnp.asarray([[9, 8, 7]], jnp.int32), jnp.arange(20, 28, dtype=jnp.int32)[None]
    soft = weights()["emb"]["weight"][prefix[0]]
    state = jax.jit(lambda p, x: methods.prefix_state(MODEL, p, x))(weights(), soft)
    whole = logits(weights(), jnp.concatenate([prefix, text], axis=1), zero_state(CONFIG, 1))[:, 3:]
    np.testing.assert_allclose(logits(weights(), text, surgery.broadcast(state, 1)), whole, atol=2e-5)
    few = methods.few_shot(MODEL, weights(), prefix[0].tolist())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), few, state)


def test_lora_differentiates_its_small_matrices_alone():
    config = RWKV7Config(
        vocab_size=37, n_layer=3, n_embd=24, head_size=8, dim_ffn=44, decay_lora=5, aaa_lora=6, mv_lora=7, gate_lora=9
    )
    shapes = jax.eval_shape(
        lambda key: RWKV7(config).init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(config, 1))["params"],
        jax.random.key(0),
    )
    tune = train.TuneConfig(loss_chunk=4)
    method = lora.method(config, Lora(rank=2), KEY)
    optimizer = train.make_optimizer(tune)
    tuned, batch = train.init(optimizer, method.init()), random_batch(0, 2, 13, 37)
    step = train.make_train_step(AdaptedRWKV7(config), optimizer, tune, method)
    jaxpr = jax.make_jaxpr(step)(shapes, tuned, batch).jaxpr
    assert products(jaxpr, matrix_shapes(shapes)) == []
    assert len(products(jaxpr, {(2, 24), (24, 2)})) >= 2 * 2 * len(lora.PROJECTIONS)


def test_merged_weights_keep_dtypes_and_share_the_rest():
    pairs = nudged(lora.method(CONFIG, SIZES.lora, KEY).init())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights())
    merged = lora.merge(half, pairs, SIZES.lora)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), merged) == jax.tree.map(lambda x: (x.dtype, x.shape), half)
    assert merged["emb"] is half["emb"]
    assert merged["blocks"]["att"]["key"]["weight"] is half["blocks"]["att"]["key"]["weight"]
    assert not np.array_equal(merged["blocks"]["att"]["value"]["weight"], half["blocks"]["att"]["value"]["weight"])


def test_lora_enters_as_alpha_over_rank_times_b_a():
    sizes = Lora(rank=3, alpha=5.0, projections=("att/value",))
    pairs = nudged(lora.method(CONFIG, sizes, KEY).init())
    merged = lora.merge(weights(), pairs, sizes)["blocks"]["att"]["value"]["weight"]
    added = np.einsum(
        "lor,lri->loi", *(np.asarray(x, np.float64)[1:] for x in (pairs["att/value"].up, pairs["att/value"].down))
    )
    np.testing.assert_allclose(merged, weights()["blocks"]["att"]["value"]["weight"] + 5 / 3 * added, atol=1e-5)


def test_a_state_of_a_low_rank_is_the_product_of_its_factors():
    baseline = methods.build("low_rank_state", MODEL, weights(), train.TuneConfig(alpha=0.5), KEY, SIZES)
    tree = nudged(baseline.method.init())
    left, right = (np.asarray(x, np.float64) for x in tree)
    state = baseline.finish(weights(), tree)[1]
    wanted = 0.5 * np.stack([[u @ w.T for u, w in zip(*layer, strict=True)] for layer in zip(left, right, strict=True)])
    np.testing.assert_allclose(state.wkv, wanted, rtol=1e-5, atol=1e-6)
    ranks = [np.linalg.matrix_rank(m, tol=1e-4) for m in np.asarray(state.wkv).reshape(-1, *state.wkv.shape[-2:])]
    assert set(ranks) == {SIZES.lora.rank}


def test_the_offset_is_scaled_by_alpha():
    method = methods.build("state_offset", MODEL, weights(), train.TuneConfig(alpha=0.25), KEY).method
    tree = nudged(method.init())
    np.testing.assert_allclose(method.full(tree).wkv.offset, 0.25 * np.asarray(tree.wkv.offset), rtol=1e-6)
    np.testing.assert_allclose(method.graft(tree, 2).wkv.offset[:, 1], 0.25 * np.asarray(tree.wkv.offset), rtol=1e-6)


def test_the_offset_is_a_memory_that_neither_fades_nor_survives_a_reset():
    state = zero_state(CONFIG, 1)
    memory = Offset(state.wkv, random_state().wkv[:, None])
    assert isinstance(memory, WKVState)
    tokens = jnp.asarray([[5, 6, 7, 8]], jnp.int32)
    run = jax.jit(lambda s, reset: MODEL.apply({"params": weights()}, tokens, s, reset=reset))
    start, reset = state._replace(wkv=memory), jnp.asarray([[False, False, True, False]])
    plain, changed = run(state, reset)[0], run(start, reset)
    assert not np.allclose(changed[0][:, :2], plain[:, :2], atol=1e-3)
    np.testing.assert_allclose(changed[0][:, 2:], plain[:, 2:], atol=1e-6)
    assert not changed[1].wkv.offset.any()


def test_an_offset_has_a_state_file(tmp_path):
    state = random_state()
    state = state._replace(wkv=Offset(state.wkv, random_state(2).wkv))
    save_state(tmp_path / "x.safetensors", state, metadata={})
    back = load_state(tmp_path / "x.safetensors").state
    assert isinstance(back.wkv, Offset)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_soup_averages_and_the_greedy_one_leaves_out_what_harms():
    states = [random_state(seed) for seed in (1, 2)]
    np.testing.assert_allclose(methods.soup(states).wkv, (states[0].wkv + states[1].wkv) / 2, rtol=1e-6)
    wanted = states[0].wkv

    def loss(state: State) -> float:
        return float(jnp.abs(state.wkv - wanted).sum())

    np.testing.assert_array_equal(methods.soup(states, loss).wkv, wanted)
    far, wanted = surgery.scale(states[0], 9.0), methods.soup(states).wkv
    np.testing.assert_allclose(methods.soup([far, *states], loss).wkv, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="0 states"):
        methods.soup([])
    infinite = states[0]._replace(wkv=states[0].wkv * jnp.nan)
    np.testing.assert_allclose(methods.soup([infinite, far, *states], loss).wkv, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="none of 2 states has a finite loss"):
        methods.soup([infinite, infinite], loss)


def test_unknown_names_and_projections_are_refused():
    with pytest.raises(ValueError, match="choose s0, state_offset, s0_offset, low_rank_state, prefix, lora"):
        methods.build("zero", MODEL, weights(), TUNE, KEY)
    with pytest.raises(ValueError, match="'att/gate' is unknown"):
        Lora(projections=("att/gate",))
