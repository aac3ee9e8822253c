"""Text longer than memory: the loss and gradient of whole rows from segments, and what a truncated one leaves out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import State
from state_tuning.core import train
from tests.helpers import CONFIG, MODEL, random_batch, random_state, weights

BATCH = random_batch(rows=3, length=20)


@functools.cache
def stepped(segment: int, exact: int = 0):
    """(loss, moved state) of one plain step from a random state."""
    tune = train.TuneConfig(segment=segment, exact_segments=exact)
    optimizer = _descent()
    start = train.init(optimizer, State(None, None, random_state().wkv))  # pyright: ignore[reportArgumentType]
    method = train.standard(CONFIG, tune)
    after, metrics = train.make_train_step(MODEL, optimizer, tune, method)(weights(), start, BATCH)
    return metrics["loss"], after.trainable.wkv - random_state().wkv, metrics


def _descent():
    import optax

    return optax.sgd(1.0)


@pytest.mark.parametrize("segment", [4, 7, 19])
def test_segments_give_the_loss_and_gradient_of_whole_rows(segment):
    loss, move, metrics = stepped(segment)
    wanted_loss, wanted, _ = stepped(0)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(move, wanted, atol=1e-6 * float(jnp.abs(wanted).max()), rtol=1e-4)
    assert metrics["state_finite"].all()


def test_a_truncated_gradient_is_that_of_the_first_segments_loss():
    loss, move, _ = stepped(5, 2)
    np.testing.assert_allclose(loss, stepped(0)[0], rtol=1e-6)
    mask = jnp.where(jnp.arange(20)[None] < 10, BATCH["loss_mask"], 0.0)
    tune = train.TuneConfig()
    evaluate = train.make_eval_step(MODEL, tune, train.standard(CONFIG, tune))

    def early(wkv):
        nll, _ = evaluate(weights(), State(None, None, wkv), BATCH | {"loss_mask": mask})  # pyright: ignore[reportArgumentType]
        return nll / BATCH["loss_mask"].sum()

    wanted = -jax.grad(early)(random_state().wkv)
    np.testing.assert_allclose(move, wanted, atol=1e-5 * float(jnp.abs(wanted).max()), rtol=1e-4)
    assert float(jnp.abs(move - stepped(0)[1]).max()) > 1e-4


def test_memory_goes_with_the_segment_not_with_the_row():
    def temporaries(segment, length):
        tune = train.TuneConfig(segment=segment, loss_chunk=8)
        optimizer = _descent()
        start = jax.eval_shape(lambda: train.init(optimizer, State(None, None, random_state().wkv)))  # pyright: ignore
        step = train.make_train_step(MODEL, optimizer, tune, train.standard(CONFIG, tune))
        compiled = step.lower(weights(), start, random_batch(rows=2, length=length)).compile()  # pyright: ignore
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(16, 256) < 0.5 * temporaries(0, 256)
