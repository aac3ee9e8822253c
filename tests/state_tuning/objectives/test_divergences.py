"""Divergences against plain numpy, their limits, and the bound of a list with its rest."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_tuning.objectives import distillation, divergences
from state_tuning.objectives.divergences import Exact, Listed
from tests.helpers import CONFIG, MODEL, logits, random_batch, random_state, weights

KINDS = ("reverse", "forward", "mixed")


def distributions(seed, classes=7, rows=5):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(classes, 0.7), (2, rows)) + 1e-6
    return p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def by_hand(p, q, kind, b):
    """p the student, q the teacher."""
    m = b * q + (1 - b) * p
    return {"reverse": kl(p, q), "forward": kl(q, p), "mixed": b * kl(q, m) + (1 - b) * kl(p, m)}[kind]


@partial(jax.jit, static_argnames=("kind", "b"))
def measured(log_p, log_q, kind, b):
    return divergences.divergence(log_p, log_q, kind, b)


def found(p, q, kind, b=0.3):
    return np.asarray(measured(np.float32(np.log(p)), np.float32(np.log(q)), kind, b))


@partial(jax.jit, static_argnames="kind")
def merged(log_p, ids, log_q, kind):
    pair = divergences.with_rest(log_p, ids, log_q)
    return pair, divergences.divergence(*pair, kind, 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_each_direction_is_what_it_says(kind):
    p, q = distributions(0)
    np.testing.assert_allclose(found(p, q, kind), by_hand(p, q, kind, 0.3), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found(p, p, kind), 0.0, atol=1e-6)


def test_reverse_and_forward_are_the_limits_of_the_mixture():
    p, q = distributions(1)
    for b, kind, factor in ((1e-3, "forward", 1e-3), (1 - 1e-3, "reverse", 1e-3)):
        np.testing.assert_allclose(by_hand(p, q, "mixed", b) / factor, by_hand(p, q, kind, b), rtol=0.1)
    np.testing.assert_allclose(found(p, q, "mixed", 0.5), found(q, p, "mixed", 0.5), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((2, 6)), st.sampled_from(KINDS))
def test_a_list_with_its_rest_is_a_lower_bound(seed, listed, kind):
    p, q = distributions(seed)
    ids = np.argsort(-q, axis=-1)[:, :listed].astype(np.int32)
    log_q = np.float32(np.log(np.take_along_axis(q, ids, -1)))
    pair, below = merged(np.float32(np.log(p)), ids, log_q, kind)
    exact, pair = by_hand(p, q, kind, 0.3), [np.asarray(column) for column in pair]
    assert (below <= exact + 1e-4).all()
    for column, whole in zip(pair, (p, q), strict=True):
        rest = 1 - np.take_along_axis(whole, ids, -1).sum(-1)
        np.testing.assert_allclose(np.exp(column[:, -1]), rest, rtol=1e-2, atol=1e-5)
    if listed == 6:
        np.testing.assert_allclose(below, exact, rtol=2e-3, atol=1e-4)


def test_the_bound_is_exact_where_the_rest_has_one_ratio():
    p, q = np.asarray([[0.5, 0.3, 0.1, 0.1]]), np.asarray([[0.2, 0.4, 0.2, 0.2]])
    ids, log_q = np.asarray([[1, 0]], np.int32), np.float32(np.log([[0.4, 0.2]]))
    for kind in KINDS:
        _, value = merged(np.float32(np.log(p)), ids, log_q, kind)
        np.testing.assert_allclose(value, by_hand(p, q, kind, 0.3), rtol=1e-4)


def test_a_list_that_adds_up_to_more_than_one_gives_finite_numbers_and_slopes():
    ids, log_q = jnp.asarray([[0, 1, 2]], jnp.int32), jnp.asarray([[-0.1, -1.0, divergences.NONE]], jnp.float32)

    def loss(x):
        return divergences.divergence(*divergences.with_rest(jax.nn.log_softmax(x), ids, log_q)).sum()

    for scale in (0.0, 30.0):
        value, slope = jax.value_and_grad(loss)(scale * jnp.asarray([[1.0, 0.0, -1.0]]))
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_unknown_kinds_and_mixtures_are_refused():
    p, q = distributions(2)
    with pytest.raises(ValueError, match="divergence 'sideways' is unknown: choose reverse, forward or mixed"):
        divergences.check("sideways", 0.5)
    with pytest.raises(ValueError, match="it must lie between 0 and 1"):
        found(p, q, "mixed", 1.0)


BATCH = random_batch(rows=3)
TEACHER = weights(5)


def sums(hidden, target, kind="reverse", **options):
    def head(x):
        return MODEL.apply({"params": weights()}, x, method="logits")

    return divergences.divergence_sums(hidden, head, target, BATCH["loss_mask"], kind=kind, chunk=4, **options)


@pytest.fixture(scope="module")
def hidden():
    return distillation.read(MODEL, weights(), random_state(), BATCH)


@pytest.fixture(scope="module")
def exact():
    return distillation.exact_target(MODEL, TEACHER, BATCH, random_state(2))


def dense(params, state):
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, *x.shape[1:])), state)
    x = np.asarray(logits(params, BATCH["tokens"], rows, BATCH["valid"]), np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_over_a_batch_are_those_of_the_two_models(hidden, exact, kind):
    wanted = by_hand(dense(weights(), random_state()), dense(TEACHER, random_state(2)), kind, 0.5)
    mask = np.asarray(BATCH["loss_mask"])
    np.testing.assert_allclose(sums(hidden, exact, kind), np.where(mask > 0, wanted, 0).sum(-1), rtol=1e-3)


def test_a_list_of_all_tokens_is_the_whole_distribution(hidden, exact):
    q = dense(TEACHER, random_state(2))
    ids = np.broadcast_to(np.arange(CONFIG.vocab_size, dtype=np.int32), q.shape)
    known = np.ones(q.shape[:2], np.float32)
    known[0] = 0
    found = np.asarray(sums(hidden, Listed(ids, np.float32(np.log(q)), known)))
    np.testing.assert_allclose(found[1:], np.asarray(sums(hidden, exact))[1:], rtol=2e-3)
    assert found[0] == 0.0


def test_the_frozen_head_gives_the_same_gradient(hidden, exact):
    kept, again = (
        jax.grad(lambda x, frozen=frozen: sums(x, exact, frozen_head=frozen).sum())(hidden) for frozen in (True, False)
    )
    np.testing.assert_allclose(kept, again, atol=1e-5)
    assert np.abs(np.asarray(kept)).max() > 1e-3
    assert not np.asarray(kept)[np.asarray(BATCH["loss_mask"]) == 0].any()


def test_targets_travel_through_a_jitted_function(exact):
    doubled = jax.jit(lambda target: Exact(target.model, target.params, 2 * target.hidden))(exact)
    np.testing.assert_allclose(doubled.hidden, 2 * np.asarray(exact.hidden))
    assert doubled.model == MODEL
