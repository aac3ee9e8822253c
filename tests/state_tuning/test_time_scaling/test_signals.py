"""Signals by enumeration: which gradients are unbiased, on a policy whose samples can all be written down."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from state_tuning.objectives.divergences import Listed
from state_tuning.test_time_scaling import signals
from state_tuning.test_time_scaling.selection import advantages, leave_one_out
from state_tuning.test_time_scaling.signals import Sampled

RNG = np.random.default_rng(0)
VOCAB, LENGTH, END = 3, 2, 0
THETA = np.float32(RNG.normal(size=(LENGTH, VOCAB)))
LOG_Q = np.log(RNG.dirichlet(np.ones(VOCAB), LENGTH)).astype(np.float32)
SAMPLES = [(END,), *itertools.product(range(1, VOCAB), range(VOCAB))]
"""All samples of at most two tokens, of which END ends one."""


def identity(x):
    return x


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def probability(sample):
    return np.exp(sum(log_softmax(np.float64(THETA))[t, token] for t, token in enumerate(sample)))


def arrays(rows):
    """(targets, mask, log q of the tokens) of samples."""
    targets, mask = np.zeros((2, len(rows), LENGTH), np.float32)
    for r, sample in enumerate(rows):
        targets[r, : len(sample)], mask[r, : len(sample)] = sample, 1
    targets = targets.astype(np.int32)
    return targets, mask, LOG_Q[np.arange(LENGTH)[None], targets]


def slope(rows, weights, signal, copies):
    """d / d theta of the weighted sum of losses; every position's logits are theta's."""
    targets, mask, _ = arrays(rows)

    def loss(theta):
        hidden = jnp.broadcast_to(theta, (len(rows), LENGTH, VOCAB))
        settings = {"copies": copies, "chunk": 1, "kind": "reverse", "mixture": 0.5}
        each = signals.losses(hidden, identity, jnp.asarray(targets), jnp.asarray(mask), signal, **settings)
        return jnp.sum(jnp.asarray(weights, jnp.float32) * each)

    return np.asarray(jax.grad(loss)(jnp.asarray(THETA)))


def whole_distribution(rows):
    """The teacher's, as a list of all tokens."""
    shape = (len(rows), LENGTH, VOCAB)
    ids = np.broadcast_to(np.arange(VOCAB, dtype=np.int32), shape)
    return Listed(ids, np.broadcast_to(LOG_Q, shape), np.ones(shape[:2], np.float32))


def test_the_samples_are_all_there_are():
    assert sum(map(probability, SAMPLES)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_the_token_signal_estimates_the_dense_reverse_kl(copies):
    """Its expectation over all groups of samples, with the leave-one-out baseline, is the gradient of distillation."""
    groups = list(itertools.product(SAMPLES, repeat=copies))
    rows = [sample for group in groups for sample in group]
    weights = np.repeat([np.prod([probability(one) for one in group]) for group in groups], copies) / copies
    _, mask, log_q = arrays(rows)
    found = slope(rows, weights, Sampled(log_q, mask), copies)
    exact = slope(SAMPLES, [probability(one) for one in SAMPLES], whole_distribution(SAMPLES), 1)
    np.testing.assert_allclose(found, exact, atol=2e-5)
    assert np.abs(exact).max() > 0.05


def test_the_dense_gradient_is_that_of_the_kl_by_differences():
    p = [probability(one) for one in SAMPLES]
    reached = [1.0, sum(q for q, one in zip(p, SAMPLES, strict=True) if len(one) > 1)]

    def kl(theta):
        log_p = log_softmax(theta)
        return (np.exp(log_p) * (log_p - LOG_Q)).sum(-1) @ reached

    found = slope(SAMPLES, p, whole_distribution(SAMPLES), 1)
    for place in np.ndindex(THETA.shape):
        step = np.zeros(THETA.shape)
        step[place] = 1e-4
        wanted = (kl(np.float64(THETA) + step) - kl(np.float64(THETA) - step)) / 2e-4
        assert found[place] == pytest.approx(wanted, abs=2e-4)


def expected_policy_gradient(gains, copies):
    """Sum over all groups of P(group) sum_k gain_k grad log pi(c_k), for rewards of one token's policy."""
    log_p = log_softmax(np.float64(THETA[0]))
    total = np.zeros(VOCAB)
    for group in itertools.product(range(VOCAB), repeat=copies):
        gain = gains(np.asarray([REWARDS[c] for c in group]))
        grads = np.eye(VOCAB)[list(group)] - np.exp(log_p)
        total += np.exp(log_p[list(group)].sum()) * gain @ grads
    return total


REWARDS = np.asarray([1.0, -0.5, 4.0])


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_leave_one_out_is_unbiased_and_the_groups_deviation_is_not(copies):
    p = np.exp(log_softmax(np.float64(THETA[0])))
    exact = p * (REWARDS - p @ REWARDS)
    found = expected_policy_gradient(lambda r: leave_one_out(r) / copies, copies)
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    scaled = expected_policy_gradient(lambda r: advantages(r) / copies, copies)
    assert np.linalg.norm(scaled - exact) > 0.1 * np.linalg.norm(exact)


def test_advantages_of_tokens_leave_their_own_sample_out():
    log_pi, log_q = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], np.float32)
    found = np.asarray(signals.token_advantages(*map(jnp.asarray, (log_pi, log_q, mask)), 2))
    gain = np.where(mask > 0, log_q - log_pi, 0)
    for r, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        baseline = gain[other].sum() / mask[other].sum()
        np.testing.assert_allclose(found[r], np.where(mask[r] > 0, gain[r] - baseline, 0), rtol=1e-5)


def test_log_probabilities_of_tokens_do_not_depend_on_the_chunk():
    hidden, mask = RNG.normal(size=(2, 5, VOCAB)).astype(np.float32), np.ones((2, 5), np.float32)
    mask[1, 3:] = 0
    targets = RNG.integers(0, VOCAB, (2, 5)).astype(np.int32)
    wanted = np.take_along_axis(log_softmax(np.float64(hidden)), targets[..., None], -1)[..., 0] * mask
    hidden[1, 3:] = np.nan
    for chunk in (1, 2, 5, 64):
        arguments = map(jnp.asarray, (hidden, targets, mask))
        x, y, m = arguments
        np.testing.assert_allclose(signals.token_log_p(x, identity, y, m, chunk), wanted, rtol=1e-5)


def test_rows_of_a_signal_are_taken_together():
    found = signals.take(whole_distribution(SAMPLES), np.asarray([2, 0, 2]))
    assert isinstance(found, Listed)
    assert found.ids.shape == (3, LENGTH, VOCAB)
    assert found.known.shape == (3, LENGTH)
