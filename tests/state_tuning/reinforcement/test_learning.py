"""Steps of learning from rewards: rewards rise, the same numbers make the same bits, nothing is compiled twice."""

import dataclasses

import jax
import numpy as np
import pytest

from rwkv7_jax import LanguageModel, checkpoint
from state_tuning.core import train
from state_tuning.reinforcement import learning, sampling
from state_tuning.reinforcement.evolution import ESConfig
from state_tuning.reinforcement.grpo import GRPOConfig
from state_tuning.reinforcement.learning import Asked, Learner
from state_tuning.reinforcement.sampling import Sampler, pad_prompts
from tests.helpers import MODEL
from tests.state_tuning.reinforcement.test_sampling import LM

PROMPTS = pad_prompts([[5, 6, 7], [9], [1, 2, 3, 4]])
TUNE = train.TuneConfig(learning_rate=1.0, warmup=1, schedule="constant")
SAMPLER = Sampler(LM, 4)
COMPILED: list[str] = []
"""An entry for every program that is compiled from here on."""
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


def low(index, texts):
    """The part of the characters that are below U+0080, a fifth at the start."""
    del index
    return np.asarray([np.mean([ord(char) < 128 for char in text] or [0.0]) for text in texts])


def learner(samples=8, lm=LM, judge=low, sampler=SAMPLER, seed=0):
    method, optimizer = train.standard(MODEL, TUNE), train.make_optimizer(TUNE)
    return Learner(lm, method, TUNE, optimizer, sampler, samples, jax.random.key(seed), judge)


def asked(number, prompts=2):
    index = (number + np.arange(prompts)) % 3
    return Asked(PROMPTS.take(index), index, np.asarray(number, np.int32))


def make(kind, of, **words):
    start = of.method.init()
    if kind == "grpo":
        return learning.grpo_step(of, GRPOConfig(**words), start)
    return learning.evolution_step(of, ESConfig(**{"sigma": 0.5, **words}), start)


def fresh(of):
    return train.init(of.optimizer, of.method.init())


def taken(step, of, steps, prompts=2):
    tuned, rows = fresh(of), []
    for number in range(steps):
        tuned, metrics = step(tuned, asked(number, prompts))
        rows.append({name: float(value) for name, value in metrics.items()})
    return tuned, rows


@pytest.mark.parametrize("kind", ["grpo", "es"])
def test_rewards_rise_and_nothing_is_compiled_after_step_2(kind):
    of = learner(samples=32)
    step = make(kind, of)
    tuned = fresh(of)
    rewards = []
    for number in range(12):
        if number == 2:
            before = sampling.sample._cache_size()
            compiled = len(COMPILED)
        tuned, metrics = step(tuned, asked(number))
        rewards.append(float(metrics["reward"]))
    assert len(COMPILED) == compiled > 0
    assert sampling.sample._cache_size() == before
    assert np.mean(rewards[-4:]) > np.mean(rewards[:2]) + 0.1
    assert {"loss", "reward", "mixed", "ended", "length", "grad_norm", "applied"} <= metrics.keys()
    assert step.tokens == pytest.approx(float(metrics["length"]) * 64)


@pytest.mark.parametrize("kind", ["grpo", "es"])
def test_the_same_numbers_make_the_same_bits(kind):
    of = learner()
    first, rows = taken(make(kind, of), of, 3)
    again, rows_again = taken(make(kind, of), of, 3)
    assert rows == rows_again
    np.testing.assert_array_equal(first.trainable.wkv, again.trainable.wkv)
    other, _ = taken(make(kind, learner(seed=1)), of, 3)
    assert np.any(np.asarray(other.trainable.wkv) != np.asarray(first.trainable.wkv))


def test_evolution_works_on_quantised_weights(tmp_path):
    checkpoint.save(tmp_path / "strong.safetensors", jax.device_get(LM.params))
    lm = LanguageModel.load(tmp_path / "strong.safetensors", quantise="int8", wkv="scan")
    of = learner(lm=lm, sampler=Sampler(lm, 4))
    tuned, rows = taken(make("es", of), of, 2)
    assert all(row["applied"] == 1 for row in rows)
    assert np.isfinite(tuned.trainable.wkv).all()
    assert np.any(tuned.trainable.wkv)


def test_rewards_of_one_value_move_nothing():
    of = learner(judge=lambda index, texts: np.ones(len(texts)))
    for kind in ("grpo", "es"):
        tuned, rows = taken(make(kind, of), of, 1)
        assert not np.any(tuned.trainable.wkv)
        assert rows[0]["mixed"] == 0


def test_the_judge_is_told_whose_answers_they_are():
    seen = []

    def judge(index, texts):
        seen.append((index.tolist(), len(texts)))
        return low(index, texts)

    of = learner(samples=2, judge=judge)
    taken(make("grpo", of), of, 1)
    taken(make("es", of), of, 1)
    assert seen == [([0, 0, 1, 1], 4)] * 2


def test_numbers_of_samples_that_do_not_do_are_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        make("grpo", learner(samples=1))
    with pytest.raises(ValueError, match="even number"):
        make("es", learner(samples=3))


def test_the_start_is_not_donated():
    of = learner()
    start = of.method.init()
    step = learning.grpo_step(of, GRPOConfig(kl=0.1), start)
    tuned, _ = step(train.init(of.optimizer, start), asked(0))
    step(tuned, asked(1))
    assert not np.any(start.wkv)
    assert dataclasses.asdict(TUNE)["steps"] == TUNE.steps
