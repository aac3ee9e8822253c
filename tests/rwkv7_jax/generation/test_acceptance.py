"""The law of speculative sampling, stated anew: enumerated over all proposals, and counted over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rwkv7_jax.generation import acceptance
from rwkv7_jax.generation.decode_loop import Rules
from rwkv7_jax.generation.sampling import (
    Occurrences,
    SamplingArrays,
    SamplingFlags,
    SamplingParams,
    penalise,
    sample_logits,
)

DRAWS = 20_000
P = np.asarray([0.05, 0.5, 0.0, 0.3, 0.15])
Q = np.asarray([0.3, 0.2, 0.1, 0.4, 0.0])
LAST = np.asarray([0.6, 0.1, 0.1, 0.1, 0.1])
"""Of the large model after the proposed token, whatever that is."""


def law(p, q, proposed):
    """(probability of keeping the proposed token, distribution of the token at its place if it is refused)."""
    rest = np.maximum(p - q, 0)
    return min(1.0, p[proposed] / q[proposed]), rest / rest.sum()


def log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


@pytest.fixture(scope="module")
def outcomes():
    """Proposed token -> (first token, second token or -1) of many draws with that proposal."""

    @jax.jit
    def check(proposed, key):
        keys = jax.random.split(key, (DRAWS, 2, 2))
        log_p = jnp.broadcast_to(jnp.asarray(log(np.stack([P, LAST])), jnp.float32), (DRAWS, 2, 5))
        log_q = jnp.broadcast_to(jnp.asarray(log(Q), jnp.float32), (DRAWS, 1, 5))
        return acceptance.check_sampled(log_p, log_q, jnp.full((DRAWS, 1), proposed, jnp.int32), keys)

    found = {}
    for token in np.flatnonzero(Q):
        chosen, kept = jax.device_get(check(jnp.int32(token), jax.random.key(int(token))))
        found[int(token)] = chosen[:, 0], np.where(kept == 1, chosen[:, 1], -1)
    return found


def likely(counts, probabilities):
    """Whether counts pass a chi-square test against probabilities at 1e-4."""
    used = probabilities > 0
    assert not counts[~used].any()
    expected = counts.sum() * probabilities[used]
    statistic = (np.square(counts[used] - expected) / expected).sum()
    return statistic < stats.chi2.ppf(1 - 1e-4, max(used.sum() - 1, 1))


def test_the_law_enumerated_over_all_proposals_is_the_large_models_distribution():
    total = np.zeros(5)
    for token in np.flatnonzero(Q):
        keep, rest = law(P, Q, token)
        total += Q[token] * ((1 - keep) * rest + keep * np.eye(5)[token])
    np.testing.assert_allclose(total, P, atol=1e-12)


def test_each_proposal_is_kept_and_replaced_by_the_law(outcomes):
    for token, (first, second) in outcomes.items():
        keep, rest = law(P, Q, token)
        kept = second >= 0
        assert likely(np.asarray([kept.sum(), (~kept).sum()]), np.asarray([keep, 1 - keep])), token
        assert (first[kept] == token).all()
        if keep < 1:
            assert likely(np.bincount(first[~kept], minlength=5), rest), token
        if keep > 0:
            assert likely(np.bincount(second[kept], minlength=5), LAST), token


def test_over_the_small_models_proposals_the_outcome_is_the_large_models_distribution(outcomes):
    """Frequencies of each proposal weighted with Q exactly: within five standard errors of P."""
    share = sum(Q[token] * np.bincount(first, minlength=5) / DRAWS for token, (first, _) in outcomes.items())
    np.testing.assert_allclose(share, P, atol=5 * (0.25 / DRAWS) ** 0.5)
    assert share[2] == 0


def test_equal_distributions_refuse_nothing_and_broken_ones_all():
    keys = jax.random.split(jax.random.key(0), (64, 4, 2))
    log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (64, 4, 7)))
    proposed = jax.random.categorical(jax.random.key(2), log_p[:, :3]).astype(jnp.int32)
    chosen, kept = acceptance.check_sampled(log_p, log_p[:, :3], proposed, keys)
    assert (np.asarray(kept) == 3).all()
    np.testing.assert_array_equal(chosen[:, :3], proposed)
    _, none = acceptance.check_sampled(log_p, jnp.full((64, 3, 7), -jnp.inf), proposed, keys)
    assert not none.any()


def test_greedy_keeps_what_the_large_model_would_choose():
    logits = jnp.asarray(np.eye(4)[[[1, 2, 3], [1, 0, 3], [2, 2, 0]]], jnp.float32)
    chosen, kept = acceptance.check_greedy(logits, jnp.asarray([[1, 2], [1, 2], [1, 2]], jnp.int32))
    np.testing.assert_array_equal(chosen, [[1, 2, 3], [1, 0, 3], [2, 2, 0]])
    np.testing.assert_array_equal(kept, [2, 1, 0])


def test_the_distribution_is_that_of_the_choice():
    """Frequencies of `sample_logits` under top-k, top-p and temperature."""
    settings = SamplingParams(temperature=1.7, top_p=0.9, top_k=4)
    logits = jnp.asarray([1.0, 0.3, -0.2, 0.8, 0.5, -3.0], jnp.float32)
    flags, arrays = SamplingFlags.of(settings), SamplingArrays.of(settings)
    found = np.exp(acceptance.log_probabilities(logits[None, None], arrays, flags)[0, 0])
    many = jnp.broadcast_to(logits, (DRAWS, 6))
    drawn = sample_logits(many, jax.random.split(jax.random.key(5), DRAWS), settings)
    assert likely(np.bincount(drawn, minlength=6), np.asarray(found, np.float64))
    assert (found > 0).sum() == 4
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_penalties_count_the_tokens_before_each_place():
    settings = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, penalty_decay=0.9)
    arrays, none = SamplingArrays.of(settings), np.zeros((1, 1), np.int32)
    rules = Rules(arrays, np.ones(4, np.float32), none, np.int32(-1), np.int32(9))
    logits, proposed = jnp.zeros((2, 3, 4)), jnp.asarray([[1, 1], [0, 2]], jnp.int32)
    found = acceptance.penalised_places(logits, proposed, Occurrences.none(2, 4), rules)
    np.testing.assert_allclose(found[0, 2], [0, -0.5 - 0.25 * (1 + 0.9), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[1, 2], [-0.5 - 0.25 * 0.9, 0, -0.75, 0], rtol=1e-6)
    assert not found[:, 0].any()
    seen = acceptance.counted(Occurrences.none(2, 4), jnp.asarray([[1, 1, 3], [0, 2, 3]]), jnp.asarray([2, 1]), rules)
    np.testing.assert_allclose(penalise(logits[:, 0], seen, arrays)[0], found[0, 2], rtol=1e-6)
    np.testing.assert_allclose(penalise(logits[:, 0], seen, arrays)[1], found[1, 1], rtol=1e-6)
