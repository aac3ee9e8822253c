"""Context distillation: the state after a prompt is the prompt; fitting makes up for what a file drops of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import zero_state
from state_tuning.core import surgery, train
from state_tuning.core.divergence import kl_sums
from state_tuning.observer import distill
from tests.helpers import CONFIG, MODEL, logits, random_batch, random_state, weights

PROMPT = list(range(40, 60))
TUNE = train.TuneConfig(learning_rate=0.03, steps=40, warmup=2, loss_chunk=5)


@pytest.fixture(scope="module")
def exact():
    return distill.compile_prompt(MODEL, weights(), PROMPT)


@pytest.fixture(scope="module")
def divergence():
    return distill.make_divergence(MODEL, 5)


def texts():
    return {**random_batch(5, 4, 12), "loss_mask": random_batch(5, 4, 12)["valid"].astype(jnp.float32)}


def kl(divergence, wanted, state):
    total, count = divergence(weights(), wanted, state, texts())
    return float(total.sum() / count.sum())


def test_the_state_after_a_prompt_gives_the_logits_after_it(exact):
    text = jnp.arange(5, 12, dtype=jnp.int32)[None]
    joined = jnp.concatenate([jnp.asarray([PROMPT], jnp.int32), text], axis=1)
    whole = logits(weights(), joined, zero_state(CONFIG, 1))[:, len(PROMPT) :]
    compiled = logits(weights(), text, surgery.broadcast(exact, 1))
    np.testing.assert_allclose(compiled, whole, atol=2e-5)


def test_a_long_prompt_is_read_in_segments(exact, monkeypatch):
    monkeypatch.setattr(distill, "SEGMENT", 16)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        distill.compile_prompt(MODEL, weights(), PROMPT),
        exact,
    )
    with pytest.raises(ValueError, match="no token"):
        distill.compile_prompt(MODEL, weights(), [])


def test_the_exact_state_has_no_divergence_and_the_zero_state_has(divergence, exact):
    assert kl(divergence, exact, exact) < 1e-6
    dropped, low = distill.portable(exact), distill.portable(exact, 1)
    assert not dropped.att_shift.any()
    assert np.linalg.matrix_rank(np.asarray(low.wkv), tol=1e-4).max() == 1
    zero = kl(divergence, exact, surgery.scale(exact, 0.0))
    assert zero > 1e-3
    assert 1e-6 < kl(divergence, exact, dropped) < zero


def test_the_divergence_is_from_the_wanted_state_to_the_other(divergence, exact):
    """sum_t p_t (log p_t - log q_t), p with the wanted state, q with the other."""
    batch, other = texts(), random_state(3, 1.0)

    def log_policy(state):
        x = np.asarray(logits(weights(), batch["tokens"], surgery.broadcast(state, 4)), np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_policy(exact), log_policy(other)
    wanted, reverse = (((np.exp(a) * (a - b)).sum(-1) * batch["loss_mask"]).sum(1) for a, b in ((p, q), (q, p)))
    np.testing.assert_allclose(divergence(weights(), exact, other, batch)[0], wanted, rtol=1e-3)
    assert (abs(reverse / wanted - 1) > 0.01).all()


@pytest.mark.parametrize("rank", [None, 2])
def test_fitting_brings_the_divergence_down(divergence, exact, rank):
    start = distill.portable(exact, rank)
    method = distill.method(MODEL, start, TUNE, rank)
    optimizer = train.make_optimizer(TUNE)
    step, tuned = distill.make_step(MODEL, optimizer, TUNE, method), train.init(optimizer, method.init())
    np.testing.assert_allclose(method.full(tuned.trainable).wkv, start.wkv, atol=1e-5)
    before, zero = kl(divergence, exact, start), kl(divergence, exact, surgery.scale(exact, 0.0))
    for _ in range(TUNE.steps):
        tuned, metrics = step(weights(), exact, tuned, texts())
    assert bool(metrics["applied"])
    fitted = method.full(tuned.trainable)
    assert kl(divergence, exact, fitted) < 0.8 * before < zero
    assert not fitted.att_shift.any()
    if rank:
        assert np.linalg.matrix_rank(np.asarray(fitted.wkv), tol=1e-4).max() == rank


def test_alpha_and_shifts_start_from_the_same_state(exact):
    tune = train.TuneConfig(alpha=0.5, tune_shifts=True)
    method = distill.method(MODEL, exact, tune)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), method.full(method.init()), exact)
    with pytest.raises(ValueError, match="alpha is 0"):
        distill.method(MODEL, exact, train.TuneConfig(alpha=0.0))


def test_the_models_own_texts_depend_on_the_key_and_the_prompt():
    one = distill.sample_texts(MODEL, weights(), PROMPT, jax.random.key(0), 3, 6)
    assert one == distill.sample_texts(MODEL, weights(), PROMPT, jax.random.key(0), 3, 6)
    assert one != distill.sample_texts(MODEL, weights(), PROMPT, jax.random.key(1), 3, 6)
    assert all(0 < len(text) <= 6 for text in one)
    batch = distill.text_batch([[3, 4, 5], [6]], 4)
    np.testing.assert_array_equal(batch["tokens"], [[3, 4, 5, 0], [6, 0, 0, 0]])
    np.testing.assert_array_equal(batch["loss_mask"], [[1, 1, 1, 0], [1, 0, 0, 0]])


def test_kl_in_chunks_is_kl_and_padding_may_be_anything():
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (jax.random.normal(k, (2, 7, 3)) for k in keys[:2])
    p, q = (jax.random.normal(k, (3, 5)) for k in keys[2:])
    mask = jnp.asarray([[1, 1, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0]], jnp.float32)
    x = x.at[1, 0].set(jnp.nan)

    def total(x, chunk):
        return kl_sums(x, lambda h: h @ p, y, lambda h: h @ q, mask, chunk=chunk)

    clean = jnp.nan_to_num(x)
    log_p, log_q = jax.nn.log_softmax(clean @ p), jax.nn.log_softmax(y @ q)
    wanted = (jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1) * mask).sum(1)
    for chunk in (3, 7, 100):
        np.testing.assert_allclose(total(x, chunk), wanted, rtol=1e-5)
    grad = jax.grad(lambda x: total(x, 3).sum())(x)
    assert jnp.isfinite(grad).all()
    assert not grad[1, 0].any()


def test_random_state_differs_from_the_prompts(divergence, exact):
    assert kl(divergence, exact, random_state()) > 1e-3
