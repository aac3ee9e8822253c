"""Distillation of a teacher into a state: the loss is the formula's, and it falls for exact and listed targets."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from state_tuning.core import train
from state_tuning.objectives import distillation
from state_tuning.objectives.divergences import Listed
from tests.helpers import CONFIG, MODEL, random_batch, random_state, weights

TUNE = train.TuneConfig(learning_rate=0.05, steps=15, warmup=1, loss_chunk=8)
METHOD = train.standard(CONFIG, TUNE)
BATCH = random_batch(rows=3)


@pytest.fixture(scope="module")
def target():
    """The same model from another state: what a state can reach."""
    still = jnp.zeros((CONFIG.n_layer, CONFIG.n_embd))
    state = random_state(4, 0.5)._replace(att_shift=still, ffn_shift=still)
    return distillation.exact_target(MODEL, weights(), BATCH, state)


def losses(target, optimizer=None, steps=15, **options):
    optimizer = optimizer or train.make_optimizer(TUNE)
    step = distillation.make_distillation_step(MODEL, optimizer, TUNE, METHOD, **options)
    tuned, found = train.init(optimizer, METHOD.init()), []
    for _ in range(steps):
        tuned, metrics = step(weights(), tuned, BATCH, target)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def test_the_divergence_falls_towards_a_state_that_can_be_reached(target):
    found = losses(target)
    assert found[-1]["divergence"] < 0.6 * found[0]["divergence"]
    assert found[0]["loss"] == pytest.approx(found[0]["divergence"])
    assert found[0]["tokens"] == float(np.asarray(BATCH["loss_mask"]).sum())


def test_the_hard_share_adds_the_texts_own_tokens(target):
    (mixed,) = losses(target, optax.sgd(0.0), 1, hard=0.25)
    nll, count = train.make_eval_step(MODEL, TUNE, METHOD)(weights(), METHOD.init(), BATCH)
    assert mixed["nll"] == pytest.approx(float(nll / count), rel=1e-4)
    assert mixed["loss"] == pytest.approx(0.75 * mixed["divergence"] + 0.25 * mixed["nll"], rel=1e-5)


def test_lists_teach_too_and_unknown_positions_count_nowhere(target):
    log_q = np.asarray(log_softmax(target))
    ids = np.argsort(-log_q, -1)[..., :8].astype(np.int32)
    known = np.ones(log_q.shape[:2], np.float32)
    known[:, ::2] = 0
    listed = Listed(ids, np.take_along_axis(log_q, ids, -1), known)
    found = losses(listed)
    assert found[-1]["divergence"] < 0.8 * found[0]["divergence"]
    assert found[0]["tokens"] == float((known * np.asarray(BATCH["loss_mask"])).sum())
    assert found[0]["divergence"] > 0


def log_softmax(target):
    x = np.asarray(MODEL.apply({"params": weights()}, target.hidden, method="logits"), np.float64)
    return np.float32(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def test_wrong_settings_are_refused():
    for options, message in (({"hard": 2.0}, "hard is 2.0"), ({"mixture": 0.0}, "mixture")):
        with pytest.raises(ValueError, match=message):
            distillation.make_distillation_step(MODEL, optax.sgd(1.0), TUNE, METHOD, **options)
