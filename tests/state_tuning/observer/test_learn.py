"""An observer that learns: its loss and its corrections by hand-written recursion, the observed model frozen."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

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
from state_tuning.observer.learn import LearnConfig, learnable, learnt, make_learn_step
from state_tuning.observer.observe import Observer, ObserverConfig
from tests.helpers import MODEL, random_batch, weights

LARGE_CONFIG = RWKV7Config(
    vocab_size=256, n_layer=3, n_embd=24, head_size=12, dim_ffn=24, decay_lora=4, aaa_lora=4, mv_lora=4, gate_lora=4,
    wkv_implementation="scan",
)  # fmt: skip
SMALL = LanguageModel(MODEL, weights(), ByteTokenizer())
LARGE = LanguageModel(RWKV7(LARGE_CONFIG), weights(2, LARGE_CONFIG), ByteTokenizer())
EVERY, GAIN = 4, 0.3
APPLY = jax.jit(lambda model, params, tokens, state: model.apply({"params": params}, tokens, state), static_argnums=0)


@pytest.fixture(scope="module")
def pair():
    """Maps that read all layers, with a constant and saturating entries."""
    batches = [random_batch(seed, 8, 16) for seed in (0, 1, 2)]
    config = ObserverConfig(every=EVERY, iterations=3, reads="all", bias=True, saturating=True)
    return observer.fit(SMALL, LARGE, batches, config, jax.random.key(1))


class Learner(NamedTuple):
    """A step, which several tests share: it is compiled once for each shape."""

    config: LearnConfig
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]

    @classmethod
    def make(cls, pair, config, optimizer):
        return cls(config, optimizer, make_learn_step(MODEL, LARGE.model, pair, optimizer, config))

    def init(self, pair, params=SMALL.params):
        return train.init(self.optimizer, learnable(params, pair, self.config))

    def run(self, tuned, batches):
        metrics = []
        for batch in batches:
            tuned, found = self.step(LARGE.params, tuned, batch)
            metrics.append({name: float(value) for name, value in found.items()})
        return tuned, metrics


@pytest.fixture(scope="module")
def plain(pair):
    """Learns from comparisons alone."""
    return Learner.make(pair, LearnConfig(every=EVERY), observer.by_part(optax.adam(3e-3), optax.adam(3e-3)))


@pytest.fixture(scope="module")
def corrected(pair):
    """Learns through the corrections too."""
    return Learner.make(pair, LearnConfig(every=EVERY, gain=GAIN, state=0.7, kl=2.0), optax.sgd(1.0))


def kl(wanted, found):
    """KL(wanted | found) of logits, float64."""
    p, q = (np.asarray(x, np.float64) for x in (wanted, found))
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("gain", [0.0, GAIN])
def test_the_loss_is_that_of_a_hand_written_recursion(pair, corrected, gain):
    """S^ <- S^ + gain Q (S - P S^) after each comparison; sum_l |P S^ - S|^2 / |S|^2 plus the mean KL."""
    tokens = random_batch(3, 3, 12)["tokens"]
    batch = random_batch(3, 3, 12) | {"tokens": tokens, "valid": jnp.ones(tokens.shape, bool)}
    ours, theirs = zero_state(MODEL.config, 3), zero_state(LARGE_CONFIG, 3)
    errors, sizes, divergence = np.zeros(3), np.zeros(3), []
    for begin in (0, 4, 8):
        part = tokens[:, begin : begin + 4]
        small, ours = APPLY(MODEL, SMALL.params, part, ours)
        large, theirs = APPLY(LARGE.model, LARGE.params, part, theirs)
        predicted = state_map.apply(pair.up, ours.wkv)
        errors += np.square(np.asarray(predicted - theirs.wkv, np.float64)).sum((1, 2, 3, 4))
        sizes += np.square(np.asarray(theirs.wkv, np.float64)).sum((1, 2, 3, 4))
        divergence.append(kl(large, small))
        back = state_map.apply(pair.down, theirs.wkv - predicted) - pair.down.bias[:, None]
        ours = ours._replace(wkv=ours.wkv + gain * back)
    without = dataclasses.replace(corrected.config, gain=0.0)
    learner = corrected if gain else Learner.make(pair, without, optax.sgd(0.0))
    _, (metrics,) = learner.run(learner.init(pair), [batch])
    np.testing.assert_allclose(metrics["state_error"], (errors / sizes).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], np.mean(divergence), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 0.7 * metrics["state_error"] + 2.0 * metrics["kl"], rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences(pair, corrected):
    """Along one direction of the weights and one of the maps, through the corrections too."""
    batch = random_batch(4, 3, 12)
    tuned, (metrics,) = corrected.run(corrected.init(pair), [batch])
    tree = learnable(SMALL.params, pair, corrected.config)
    gradient = jax.tree.map(lambda a, b: a - b, tree, tuned.trainable)
    square = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradient))
    assert metrics["grad_norm"] == pytest.approx(square**0.5, rel=1e-2)
    length = 1e-3 / square**0.5
    losses = []
    for sign in (-1, 1):
        moved = jax.tree.map(lambda leaf, g, sign=sign: leaf + sign * length * g, tree, gradient)
        losses += [row["loss"] for row in corrected.run(train.init(corrected.optimizer, moved), [batch])[1]]
    assert (losses[1] - losses[0]) / (2 * length) == pytest.approx(square, rel=0.05)


def test_learning_lowers_both_terms_on_text_that_it_has_not_seen(pair, plain):
    tuned, metrics = plain.run(plain.init(pair), [random_batch(seed % 4, 8, 16) for seed in range(30)])
    assert plain.step._cache_size() == 1, "the step is compiled once"
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    found = learnt(jax.device_get(tuned.trainable), pair)
    assert found.down.u is pair.down.u, "without a gain the maps back are not trained"
    after = SMALL.replace(params=tuned.trainable["small"])
    held_out = random_batch(9, 8, 16)
    first, last = (
        observer.report(maps, small, LARGE, held_out, EVERY) for maps, small in ((pair, SMALL), (found, after))
    )
    assert last.kl_logits < first.kl_logits
    assert last.r2.mean() > first.r2.mean()


def test_corrections_are_trained_with_a_gain(pair, corrected):
    tuned, _ = corrected.run(corrected.init(pair), [random_batch(0, 3, 12)])
    before = learnable(SMALL.params, pair, corrected.config)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), tuned.trainable, before)
    assert all(moved["down"][name] for name in ("u", "w"))
    assert not moved["down"]["bias"], "a difference is fed back, so the constant takes no part"
    assert moved["up"]["bias"]


def test_no_weight_of_the_observed_model_is_differentiated(pair):
    """No product of the step has the shape of a gradient of its widest matrix."""
    config = dataclasses.replace(LARGE_CONFIG, dim_ffn=29)
    large = RWKV7(config)
    params = weights(2, config)
    step = make_learn_step(MODEL, large, pair, optax.sgd(0.0), LearnConfig(every=EVERY))
    tuned = train.init(optax.sgd(0.0), learnable(SMALL.params, pair, LearnConfig(every=EVERY)))
    text = str(jax.make_jaxpr(step)(params, tuned, random_batch(0, 3, 8)))
    assert "f32[29,24]" in text or "f32[2,29,24]" in text, "the weight itself"
    added = [line for line in text.splitlines() if "29,24" in line and (" add" in line or "add_any" in line)]
    assert added == []


def test_an_update_that_is_not_finite_changes_nothing(pair, plain):
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), SMALL.params)
    tuned, (metrics,) = plain.run(plain.init(pair, broken), [random_batch(0, 8, 16)])
    assert not metrics["applied"]
    assert metrics["skipped"] == 1
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), tuned.trainable["up"], state_map.factors(pair.up))
    assert all(same.values())


def test_settings_out_of_range_are_told():
    for wrong in ({"every": 0}, {"gain": -1.0}, {"state": 0.0, "kl": 0.0}, {"kl": float("nan")}):
        with pytest.raises(ValueError, match="must be"):
            LearnConfig(**wrong)


def test_the_observer_is_a_pair_of_maps(pair):
    assert isinstance(pair, Observer)
    assert pair.up.source.shape == (3, 2)
    assert pair.down.source.shape == (2, 3)
