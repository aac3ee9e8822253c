"""The loss of GRPO against plain formulas, and its gradient against an enumeration of all samples."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax import RWKV7
from rwkv7_jax.state import State
from state_tuning.core import surgery, train
from state_tuning.reinforcement import grpo
from state_tuning.reinforcement.estimators import leave_one_out
from state_tuning.reinforcement.grpo import GRPOConfig
from state_tuning.reinforcement.sampling import Drawn, pad_prompts
from tests.helpers import CONFIG, MODEL, logits, random_state, weights

TUNE = train.TuneConfig(loss_chunk=4)
METHOD = train.standard(MODEL, TUNE)


def batch(seed=0, prompts=2, copies=2, size=5, vocab=256):
    """(prompts as lists, samples as lists, advantages, Rollouts)."""
    rng = np.random.default_rng(seed)
    given = [rng.integers(1, vocab, rng.integers(2, 7)).tolist() for _ in range(prompts)]
    said = [rng.integers(1, vocab, rng.integers(1, size + 1)).tolist() for _ in range(prompts * copies)]
    counted = np.asarray([[float(i < len(row)) for i in range(size)] for row in said], np.float32)
    tokens = np.asarray([row + [0] * (size - len(row)) for row in said], np.int32)
    gains = rng.normal(size=len(said)).astype(np.float32)
    drawn = Drawn(tokens, counted, [""] * len(said), np.ones(len(said), bool))
    rows = [given[i // copies] for i in range(len(said))]
    return rows, said, gains, grpo.rollouts(pad_prompts(given), drawn, gains)


def sampled_logits(tree, prompt, said, model=MODEL, params=None):
    """Logits before each token of one sample, by a plain pass over prompt and sample without padding."""
    state = surgery.broadcast(State(random_state().att_shift * 0, random_state().ffn_shift * 0, tree.wkv), 1)
    whole = jnp.asarray([[*prompt, *said]], jnp.int32)
    found = logits(weights() if params is None else params, whole, state, model=model)
    return found[0, len(prompt) - 1 : -1]


def log_probs(tree, prompt, said):
    log_p = jax.nn.log_softmax(sampled_logits(tree, prompt, said))
    return log_p[jnp.arange(len(said)), jnp.asarray(said)]


def plain_loss(tree, old, start, made, config):
    """The loss as the module's docstring has it, sample by sample and token by token."""
    rows, said, gains, _ = made
    total = 0.0
    for r, (prompt, ids) in enumerate(zip(rows, said, strict=True)):
        log_p, before = log_probs(tree, prompt, ids), log_probs(old, prompt, ids)
        first = jax.nn.log_softmax(sampled_logits(start, prompt, ids))
        whole = jax.nn.log_softmax(sampled_logits(tree, prompt, ids))
        for t, token in enumerate(ids):
            ratio = jnp.exp(log_p[t] - before[t])
            low, high = 1 - config.clip_low, 1 + config.clip_high
            clipped = jnp.where(ratio < low, low, jnp.where(ratio > high, high, ratio))
            total -= jnp.minimum(ratio * gains[r], clipped * gains[r])
            if config.kl_form == "exact":
                kl = jnp.sum(jnp.exp(whole[t]) * (whole[t] - first[t]))
            else:
                r_t = jnp.exp(first[t, token] - log_p[t])
                kl = r_t - jnp.log(r_t) - 1
            total += config.kl * kl
    count = sum(map(len, said)) if config.normalise == "tokens" else len(said)
    return total / count


def sized(seed, size=0.3):
    return State(None, None, random_state(seed, size).wkv)


def updated(config, tree, start, made, tune=TUNE, rate=1.0):
    optimizer = optax.sgd(rate)
    update = grpo.make_update(MODEL, optimizer, tune, METHOD, config)
    return update(weights(), train.init(optimizer, tree), start, made[-1])


@pytest.mark.parametrize(
    "config",
    [
        GRPOConfig(kl=0.3),
        GRPOConfig(kl=0.3, kl_form="k3", normalise="samples"),
        GRPOConfig(updates=2, clip_low=0.001, clip_high=0.002),
    ],
)
def test_an_update_is_the_gradient_of_the_formula(config):
    made, tree, start, rate = batch(), sized(1), sized(2), 0.05 if config.updates == 1 else 1.0
    found, metrics = updated(config, tree, start, made, rate=rate)
    now, losses = tree, []
    for _ in range(config.updates):
        loss, grads = jax.value_and_grad(lambda t: plain_loss(t, tree, start, made, config))(now)
        losses.append(float(loss))
        now = jax.tree.map(lambda p, g: p - rate * g, now, grads)
    np.testing.assert_allclose(found.trainable.wkv, now.wkv, atol=2e-5 if config.updates == 1 else 2e-4)
    assert float(metrics["loss"]) == pytest.approx(losses[-1], abs=1e-4)
    assert int(found.step) == 1
    if config.updates > 1:
        assert 0 < float(metrics["clipped"]) < 1
    else:
        assert float(metrics["clipped"]) == 0


def test_the_surrogate_and_k3_are_the_plain_ones():
    rng = np.random.default_rng(0)
    log_p, old, start = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(3))
    gains, counted = rng.normal(size=3).astype(np.float32), (rng.random((3, 4)) < 0.7).astype(np.float32)
    made = grpo.surrogate(*map(jnp.asarray, (log_p, old, gains, counted)), 0.2, 0.3)
    ratio = np.exp(log_p - old)
    plain, bound = ratio * gains[:, None], np.clip(ratio, 0.8, 1.3) * gains[:, None]
    np.testing.assert_allclose(made[0], np.minimum(plain, bound) * counted, rtol=1e-5)
    np.testing.assert_array_equal(made[1], (bound < plain) * counted)
    r = np.exp(start - log_p)
    np.testing.assert_allclose(
        grpo.k3(*map(jnp.asarray, (log_p, start, counted))), (r - np.log(r) - 1) * counted, rtol=1e-4, atol=1e-6
    )


def test_what_is_not_counted_may_be_anything():
    found = grpo.surrogate(jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((1, 2)), 0.2, 0.2)
    assert not np.any(found[0])
    assert not np.any(grpo.k3(jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2)), jnp.zeros((1, 2))))


def test_parts_and_penalty_add_up():
    made, tree = batch(prompts=2, copies=4), sized(1)
    config = GRPOConfig(kl=0.1)
    whole, _ = updated(config, tree, sized(2), made)
    parts, _ = updated(config, tree, sized(2), made, dataclasses.replace(TUNE, accumulate=4))
    np.testing.assert_allclose(parts.trainable.wkv, whole.trainable.wkv, atol=1e-5)
    pulled, _ = updated(config, tree, sized(2), made, dataclasses.replace(TUNE, l2=0.1))
    np.testing.assert_allclose(pulled.trainable.wkv, whole.trainable.wkv - 0.2 * tree.wkv, atol=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing():
    made, tree = batch(), sized(1)
    broken = made[-1]._replace(advantage=np.full(4, np.inf, np.float32))
    found, metrics = updated(GRPOConfig(), tree, tree, (broken,))
    np.testing.assert_array_equal(found.trainable.wkv, tree.wkv)
    assert not bool(metrics["applied"])
    assert (int(found.skipped), int(found.step)) == (1, 1)


VOCAB, LONG = 3, 2
TINY = RWKV7(dataclasses.replace(CONFIG, vocab_size=VOCAB))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_unbiased_on_all_samples(temperature):
    """With N the number of samples, the mean over all pairs of samples of the update's gradient, pairs weighed with
    their probability, is the exact gradient of the mean reward."""
    params = weights(config=TINY.config)
    prompt, tree = [1, 2], sized(4)
    every = list(itertools.product(range(VOCAB), repeat=LONG))
    reward = np.random.default_rng(3).normal(size=len(every))

    def probabilities(tree):
        found = []
        for ids in every:
            log_p = jax.nn.log_softmax(sampled_logits(tree, prompt, list(ids), TINY, params) / temperature)
            found.append(jnp.exp(sum(log_p[t, token] for t, token in enumerate(ids))))
        return jnp.stack(found)

    exact = jax.grad(lambda tree: probabilities(tree) @ jnp.asarray(reward, jnp.float32))(tree)
    p = np.asarray(probabilities(tree), np.float64)
    assert p.sum() == pytest.approx(1, abs=1e-4)
    pairs = list(itertools.product(range(len(every)), repeat=2))
    gains = leave_one_out(np.asarray([[reward[i], reward[j]] for i, j in pairs]))
    share = np.asarray([p[i] * p[j] for i, j in pairs])[:, None]
    rows = np.asarray([every[i] for pair in pairs for i in pair], np.int32)
    drawn = Drawn(rows, np.ones(rows.shape, np.float32), [""] * len(rows), np.ones(len(rows), bool))
    made = grpo.rollouts(pad_prompts([prompt]), drawn, (gains * share * len(pairs)).reshape(-1))
    config = GRPOConfig(normalise="samples", temperature=temperature)
    optimizer = optax.sgd(1.0)
    update = grpo.make_update(TINY, optimizer, TUNE, train.standard(TINY, TUNE), config)
    found, _ = update(params, train.init(optimizer, tree), tree, made)
    np.testing.assert_allclose(found.trainable.wkv - tree.wkv, exact.wkv, atol=2e-5)
    assert np.abs(exact.wkv).max() > 1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"updates": 0}, "updates is 0"),
        ({"clip_low": 1.5}, "clip_low must lie"),
        ({"kl": -1.0}, "must be finite and not negative"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_wrong_settings_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        GRPOConfig(**words)
