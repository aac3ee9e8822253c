"""The observer: maps recover a linear relation, a model observes itself, corrections help, states travel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, zero_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning import observer
from state_tuning.core import train
from state_tuning.observer import state_map
from state_tuning.observer.observe import Observer, ObserverConfig
from state_tuning.observer.state_map import Maps
from tests.helpers import CONFIG, MODEL, random_batch, random_state, weights

LARGE_CONFIG = RWKV7Config(
    vocab_size=256, n_layer=3, n_embd=24, head_size=12, dim_ffn=24, decay_lora=4, aaa_lora=4, mv_lora=4, gate_lora=4,
    wkv_implementation="scan",
)  # fmt: skip
SMALL = LanguageModel(MODEL, weights(), ByteTokenizer())
LARGE = LanguageModel(RWKV7(LARGE_CONFIG), weights(2, LARGE_CONFIG), ByteTokenizer())
EVERY = 4
APPLY = jax.jit(lambda model, params, tokens, state: model.apply(params, tokens, state), static_argnums=0)


def random_maps(seed, target=(3, 2, 12), source=(2, 8)):
    """Maps from 2 layers with `source` = (heads, size) to `target` = (layers, heads, size)."""
    rng = np.random.default_rng(seed)
    layers, heads, size = target
    u, w = (rng.normal(size=(layers, heads, source[0], size, source[1])) for _ in range(2))
    return Maps(np.asarray([0, 0, 1][:layers], np.int32), jnp.asarray(u, jnp.float32), jnp.asarray(w, jnp.float32))


def test_apply_is_the_sum_over_heads_and_linear():
    maps, rng = random_maps(0), np.random.default_rng(1)
    s = rng.normal(size=(2, 5, 2, 8, 8)).astype(np.float32)
    out = np.asarray(state_map.apply(maps, jnp.asarray(s)))
    u, w = np.asarray(maps.u), np.asarray(maps.w)
    wanted = sum(u[2, 1, j] @ s[1, 3, j] @ w[2, 1, j].T for j in range(2))
    np.testing.assert_allclose(out[2, 3, 1], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state_map.apply(maps, jnp.asarray(3 * s[:, 0])), 3 * out[:, 0], rtol=1e-4, atol=1e-4)


def test_a_linearly_related_pair_is_recovered():
    maps, rng = random_maps(2), np.random.default_rng(3)
    source = jnp.asarray(rng.normal(size=(2, 120, 2, 8, 8)), jnp.float32)
    target = state_map.apply(maps, source)
    train_part, held_out = slice(0, 80), slice(80, 120)
    fitted = state_map.fit(
        jnp.swapaxes(source[:, train_part], 0, 1), jnp.swapaxes(target[:, train_part], 0, 1), jax.random.key(0),
        pairs=[0, 0, 1], iterations=60, ridge=1e-7,
    )  # fmt: skip
    r2 = state_map.r_squared(state_map.apply(fitted, source[:, held_out]), target[:, held_out])
    assert (r2 > 0.999).all(), r2


def test_equal_states_of_rank_one_give_finite_maps():
    """Their Gram matrix has one eigenvalue, beside which the ridge is less than rounding."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 1, 2, 64, 1)) @ rng.normal(size=(1, 1, 2, 1, 64))
    source = jnp.asarray(np.repeat(one, 4, 0), jnp.float32)
    target = jnp.asarray(rng.normal(size=(4, 1, 1, 16, 16)), jnp.float32)
    found = state_map.fit(source, target, jax.random.key(0))
    mean = target.mean(0, keepdims=True)
    error = jnp.linalg.norm(state_map.apply(found, source) - target) / jnp.linalg.norm(mean - target)
    assert bool(jnp.isfinite(error))
    assert error < 1.2  # the best is the mean's projection on rank one


def test_states_that_are_not_finite_are_refused():
    states = jnp.zeros((2, 1, 1, 4, 4)).at[0].set(jnp.nan)
    with pytest.raises(ValueError, match="not finite"):
        state_map.fit(states, states, jax.random.key(0))


def test_more_rounds_and_more_terms_never_explain_less_of_what_was_fitted():
    rng = np.random.default_rng(4)
    source = jnp.asarray(rng.normal(size=(40, 2, 2, 4, 4)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(40, 1, 1, 6, 6)), jnp.float32) + jnp.pad(
        source[:, :1, :1], ((0, 0),) * 3 + ((0, 2), (0, 2))
    )

    def explained(**options):
        maps = state_map.fit(source, target, jax.random.key(0), **options)
        predicted = state_map.apply(maps, jnp.swapaxes(source, 0, 1))
        return float(state_map.r_squared(predicted, jnp.swapaxes(target, 0, 1))[0])

    values = [explained(iterations=n) for n in (1, 4, 16)]
    assert values[0] <= values[1] + 1e-5 <= values[2] + 2e-5
    assert explained(iterations=16, terms=2) > values[2]


def test_a_model_observes_itself():
    batches = [random_batch(seed, 8, 16) for seed in (0, 1)]
    found = observer.fit(
        SMALL, SMALL, batches, ObserverConfig(every=EVERY, iterations=40, ridge=1e-6), jax.random.key(0)
    )
    seen = observer.report(found, SMALL, SMALL, random_batch(2, 8, 16), EVERY)
    assert (seen.r2 > 0.98).all(), seen.r2
    assert seen.kl_logits < 1e-5
    assert seen.kl_state < 0.05


@pytest.fixture(scope="module")
def pair():
    batches = [random_batch(seed, 8, 16) for seed in (0, 1, 2)]
    return observer.fit(SMALL, LARGE, batches, ObserverConfig(every=EVERY), jax.random.key(1))


def test_corrections_bring_the_observer_nearer(pair):
    batch = random_batch(9, 8, 16)
    free, held = (observer.report(pair, SMALL, LARGE, batch, EVERY, gain) for gain in (0.0, 0.5))
    assert free.r2.shape == (3,)
    assert np.isfinite([free.kl_logits, free.kl_state]).all()
    assert free.kl_logits > 0
    assert free.r2.mean() < 1
    assert not np.array_equal(free.r2, held.r2)


def test_corrections_steer_a_wrong_start_back():
    """A model observes itself, but starts from another state: with gain 1 and exact maps one correction mends it."""
    eye = jnp.broadcast_to(jnp.eye(8), (2, 2, 2, 8, 8)) * jnp.eye(2)[None, :, :, None, None]
    same = Maps(np.asarray([0, 1], np.int32), eye, jnp.broadcast_to(jnp.eye(8), (2, 2, 2, 8, 8)))
    start = zero_state(CONFIG, None)._replace(wkv=random_state(3, 3.0).wkv)
    batch = {name: x[:, :16] for name, x in random_batch(5, 8, 32).items()}
    errors = {}
    for gain in (0.0, 1.0):
        trail = observer.trajectories(SMALL, SMALL, Observer(same, same), batch, EVERY, gain, start)
        errors[gain] = np.abs(np.asarray(trail.predicted - trail.large)).max((1, 2, 3, 4, 5))
    np.testing.assert_allclose(errors[1.0][0], errors[0.0][0])
    assert errors[0.0][-1] > 1e-2
    assert errors[1.0][-1] < 0.5 * errors[0.0][-1]


def test_transfer_carries_matrices_there_and_back(pair):
    state = random_state()
    there = state_map.transfer(pair.up, state, LARGE_CONFIG)
    assert there.wkv.shape == zero_state(LARGE_CONFIG, None).wkv.shape
    assert not there.att_shift.any()
    back = state_map.transfer(pair.down, there, CONFIG)
    assert back.wkv.shape == state.wkv.shape
    doubled = state._replace(wkv=2 * state.wkv)
    np.testing.assert_allclose(state_map.transfer(pair.up, doubled, LARGE_CONFIG).wkv, 2 * there.wkv, rtol=1e-4)
    with pytest.raises(ValueError, match="the target model has"):
        state_map.transfer(pair.up, state, CONFIG)


def test_refining_lowers_the_whole_loss(pair):
    optimizer = optax.adam(3e-3)
    step = observer.make_refine_step(MODEL, LARGE.model, pair, optimizer, ObserverConfig(every=EVERY))
    tuned = train.init(optimizer, observer.refinable(pair, MODEL))
    losses = []
    for _ in range(8):
        tuned, metrics = step(SMALL.params, LARGE.params, tuned, random_batch(0, 8, 16))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert tuned.trainable["s"].any()


def test_misfits_are_told():
    states = jnp.zeros((4, 2, 2, 8, 8))
    with pytest.raises(ValueError, match="must name a source layer"):
        state_map.fit(states, states, jax.random.key(0), pairs=[0, 5])
    with pytest.raises(ValueError, match="no row has 50 tokens"):
        observer.fit(SMALL, LARGE, [random_batch()], ObserverConfig(every=50), jax.random.key(0))
    with pytest.raises(ValueError, match="no held-out row is longer than 32 tokens"):
        observer.report(Observer(random_maps(0), random_maps(1)), SMALL, LARGE, random_batch(), 32)
    assert state_map.paired_layers(2, 4) == [0, 0, 1, 1]


def numpy_kl(wanted, found):
    """KL(wanted | found) of logits [..., vocabulary], float64."""
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (wanted, found))
    return (np.exp(p) * (p - q)).sum(-1)


def states_and_logits(frozen, tokens, start):
    """Logits of the tokens from `start`, and the batched state behind them."""
    logits, end = APPLY(frozen.model, {"params": frozen.params}, tokens, start)
    return np.asarray(logits, np.float64), end


def test_the_report_is_what_its_definitions_say(pair):
    """Segment by segment with plain calls of the models: KL(large | small), and KL(large | large from P S^)."""
    tokens = random_batch(3, 3, 2 * EVERY)["tokens"]
    batch = {"tokens": tokens, "valid": np.ones(tokens.shape, bool)}
    halves = tokens[:, :EVERY], tokens[:, EVERY:]
    (small_1, ours), (large_1, theirs) = (
        states_and_logits(x, halves[0], zero_state(x.model.config, 3)) for x in (SMALL, LARGE)
    )
    observed = theirs._replace(wkv=state_map.apply(pair.up, ours.wkv))
    (small_2, _), (large_2, _) = (states_and_logits(x, halves[1], s) for x, s in ((SMALL, ours), (LARGE, theirs)))
    guessed, _ = states_and_logits(LARGE, halves[1], observed)
    kl = np.mean([numpy_kl(large_1, small_1), numpy_kl(large_2, small_2)])
    seen = observer.report(pair, SMALL, LARGE, batch, EVERY)
    np.testing.assert_allclose(seen.kl_logits, kl, rtol=1e-4)
    np.testing.assert_allclose(seen.kl_state, numpy_kl(large_2, guessed).mean(), rtol=1e-4)


def test_the_loss_that_is_refined_is_relative_error_and_kl(pair):
    batch = random_batch(0, 8, 16)
    optimizer = optax.sgd(0.0)
    step = observer.make_refine_step(MODEL, LARGE.model, pair, optimizer, ObserverConfig(every=EVERY))
    tuned = train.init(optimizer, observer.refinable(pair, MODEL))
    _, metrics = step(SMALL.params, LARGE.params, tuned, batch)
    trail = observer.trajectories(SMALL, LARGE, pair, batch, EVERY)
    used = np.moveaxis(np.broadcast_to(np.asarray(trail.valid), (3, *trail.valid.shape)), 0, 1)
    actual, predicted = (np.asarray(x, np.float64)[used] for x in (trail.large, trail.predicted))
    layers = np.broadcast_to(np.arange(3)[None, :, None], used.shape)[used]
    squares = [np.square(x).sum((1, 2, 3)) for x in (predicted - actual, actual)]
    errors, sizes = (np.bincount(layers, x) for x in squares)
    wanted = (errors / sizes).sum() + np.asarray(trail.kl_logits).sum() / np.asarray(trail.tokens).sum()
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)


def affine_pair(seed):
    """Samples [N, ...] of states of 2 layers, and of states of one layer that are read off both and a constant."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(160, 2, 2, 6, 6)).astype(np.float32)
    u, w = (rng.normal(size=(1, 2, 4, 5, 6)).astype(np.float32) for _ in range(2))
    heads = source.reshape(160, 4, 6, 6)
    target = np.einsum("hpVv,npvk,hpKk->nhVK", u[0], heads, w[0])[:, None] + rng.normal(size=(1, 1, 2, 5, 5))
    return jnp.asarray(source), jnp.asarray(target, jnp.float32)


def held_out_r2(source, target, **options):
    maps = state_map.fit(source[:120], target[:120], jax.random.key(0), iterations=60, ridge=1e-7, **options)
    found = state_map.apply(maps, jnp.swapaxes(source[120:], 0, 1))
    return maps, float(state_map.r_squared(found, jnp.swapaxes(target[120:], 0, 1))[0])


def test_all_layers_and_a_constant_are_read_where_they_are_needed():
    source, target = affine_pair(0)
    maps, whole = held_out_r2(source, target, pairs=[[0, 1]], bias=True)
    assert whole > 0.999
    assert held_out_r2(source, target, pairs=[[0, 1]])[1] < 0.995
    assert held_out_r2(source, target, pairs=[1], bias=True)[1] < 0.9
    one = source[0]
    np.testing.assert_allclose(state_map.apply(maps, 0 * one, difference=True), 0, atol=1e-6)
    np.testing.assert_allclose(state_map.apply(maps, 0 * one), maps.bias, atol=1e-6)


def test_entries_that_saturate_are_read_beside_linear_ones():
    rng = np.random.default_rng(1)
    source = jnp.asarray(2 * rng.normal(size=(160, 1, 2, 6, 6)), jnp.float32)
    scale = jnp.sqrt(jnp.square(source[:120]).mean((0, 3, 4)))[None, :, :, None, None]
    target = source[:, :, :1] - 1.5 * (scale * jnp.tanh(source / scale))[:, :, 1:]
    maps, found = held_out_r2(source, target, saturating=True)
    assert maps.scale.shape == (1, 2)
    assert maps.u.shape[2] == 4
    assert found > 0.99 > held_out_r2(source, target)[1]


@pytest.mark.parametrize("saturating", [False, True])
def test_widened_maps_give_the_same_and_read_all_layers(saturating):
    rng = np.random.default_rng(2)
    source = jnp.asarray(rng.normal(size=(40, 2, 2, 6, 6)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(40, 3, 2, 5, 5)), jnp.float32)
    options = {"iterations": 3, "terms": 2, "bias": True, "saturating": saturating}
    maps = state_map.fit(source, target, jax.random.key(0), **options)
    wide = state_map.widened(maps, 2, 4 if saturating else 2, jax.random.key(1))
    states = jnp.swapaxes(source, 0, 1)
    np.testing.assert_allclose(state_map.apply(wide, states), state_map.apply(maps, states), rtol=1e-5, atol=1e-5)
    assert wide.source.tolist() == [[0, 1], [1, 0], [1, 0]] or wide.source.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert wide.u.shape[2] == 2 * maps.u.shape[2]
    moved = wide._replace(u=wide.u + 0.1)
    other = states.at[1].set(0)
    assert np.abs(np.asarray(state_map.apply(moved, states) - state_map.apply(moved, other)))[0].max() > 1e-2


def test_r_squared_is_one_minus_residual_by_spread():
    rng = np.random.default_rng(3)
    found, target = (rng.normal(size=(2, 7, 3, 4, 4)) for _ in range(2))
    for layer, value in enumerate(
        state_map.r_squared(jnp.asarray(found, jnp.float32), jnp.asarray(target, jnp.float32))
    ):
        residual = spread = 0.0
        for sample in range(7):
            residual += ((found[layer, sample] - target[layer, sample]) ** 2).sum()
            spread += ((target[layer, sample] - target[layer].mean(0)) ** 2).sum()
        assert value == pytest.approx(1 - residual / spread, rel=1e-5)
    mean = jnp.broadcast_to(jnp.asarray(target.mean(1, keepdims=True), jnp.float32), target.shape)
    np.testing.assert_allclose(state_map.r_squared(mean, jnp.asarray(target, jnp.float32)), 0, atol=1e-5)
