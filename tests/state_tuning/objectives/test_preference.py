"""DPO: the loss against plain numpy, its gradient against a finite difference of that, and a margin that grows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core import train
from state_tuning.objectives import preference
from state_tuning.objectives.preference import Pair
from tests.helpers import CONFIG, MODEL, logits, random_state, weights

PAIRS = [Pair("say", " yes", " no"), Pair("and", " then", " what"), Pair("a", "b", " longer one")]
ENCODED = preference.encode_pairs(ByteTokenizer(), PAIRS)
BATCH = preference.pair_batch(ENCODED, 16)
TUNE = train.TuneConfig(learning_rate=0.1, steps=20, warmup=1, clip_norm=0.0, loss_chunk=8)
METHOD = train.standard(CONFIG, TUNE)
BETA = 0.4


def log_likelihoods(wkv):
    """Of the six completions, float64, from the whole logits."""
    state = random_state(size=0.0)._replace(wkv=wkv)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 6, *x.shape[1:])), state)
    x = np.asarray(logits(weights(), BATCH["tokens"], rows, BATCH["valid"]), np.float64)
    log_p = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    chosen = np.take_along_axis(log_p, np.asarray(BATCH["targets"])[..., None], -1)[..., 0]
    return np.where(np.asarray(BATCH["loss_mask"]) > 0, chosen, 0).sum(-1)


def formula(wkv):
    """- mean log sigmoid(beta [...]) with pi_0 from the zero state."""
    ratio = log_likelihoods(wkv) - log_likelihoods(0 * wkv)
    margin = BETA * (ratio[:3] - ratio[3:])
    return float(np.mean(np.log1p(np.exp(-margin))))


@pytest.fixture(scope="module")
def start():
    return preference.start_nll(MODEL, weights(), METHOD, TUNE, BATCH)


@pytest.fixture(scope="module")
def descend():
    """One step of plain gradient descent of rate 1."""
    return preference.make_preference_step(MODEL, optax.sgd(1.0), TUNE, METHOD, BETA)


def tuned_from(wkv, optimizer):
    return train.init(optimizer, METHOD.init()._replace(wkv=wkv))


def test_pairs_become_rows_chosen_first():
    assert BATCH["tokens"].shape == (6, 16)
    text = [bytes(row[row > 0].tolist()).decode() for row in np.asarray(BATCH["tokens"])]
    assert text == ["say yes", "and then", "ab", "say no", "and what", "a longer one"]
    assert np.asarray(BATCH["loss_mask"]).sum(1).tolist() == [5, 6, 2, 4, 6, 12]


def test_the_loss_and_its_gradient_are_those_of_the_formula(start, descend):
    np.testing.assert_allclose(start, -log_likelihoods(jnp.zeros((2, 2, 8, 8))), rtol=1e-4)
    wkv = random_state(3, 0.2).wkv
    tuned, metrics = descend(weights(), tuned_from(wkv, optax.sgd(1.0)), BATCH, start)
    np.testing.assert_allclose(metrics["loss"], formula(wkv), rtol=1e-4)
    slope = np.asarray(wkv - tuned.trainable.wkv)
    length = np.linalg.norm(slope)
    np.testing.assert_allclose(metrics["grad_norm"], length, rtol=1e-3)
    move = np.float32(0.02) * slope / length
    np.testing.assert_allclose((formula(wkv + move) - formula(wkv - move)) / 0.04, length, rtol=0.02)


def test_at_the_start_all_margins_are_zero(start, descend):
    _, metrics = descend(weights(), tuned_from(jnp.zeros((2, 2, 8, 8)), optax.sgd(1.0)), BATCH, start)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-3)
    assert abs(float(metrics["margin"])) < 1e-3


def test_the_chosen_ones_gain_on_the_rejected_ones(start):
    optimizer = train.make_optimizer(TUNE)
    step = preference.make_preference_step(MODEL, optimizer, TUNE, METHOD, BETA)
    tuned = train.init(optimizer, METHOD.init())
    for _ in range(20):
        tuned, metrics = step(weights(), tuned, BATCH, start)
    assert float(metrics["loss"]) < 0.6
    assert float(metrics["preferred"]) == 1.0
    before, after = log_likelihoods(jnp.zeros((2, 2, 8, 8))), log_likelihoods(tuned.trainable.wkv)
    assert ((after - before)[:3] > (after - before)[3:]).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="pair 1: chosen and rejected are the same text"):
        preference.encode_pairs(ByteTokenizer(), [PAIRS[0], Pair("a", "b", "b")])
    with pytest.raises(ValueError, match="beta is 0"):
        preference.make_preference_step(MODEL, optax.sgd(1.0), TUNE, METHOD, 0.0)
    with pytest.raises(ValueError, match="leave accumulate at 1"):
        preference.make_preference_step(MODEL, optax.sgd(1.0), train.TuneConfig(accumulate=2), METHOD)
