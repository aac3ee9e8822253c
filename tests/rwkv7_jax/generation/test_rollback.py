"""The state after any number of the tokens of one pass is the state of a pass over those tokens alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, functional, unstack_blocks
from rwkv7_jax.generation import rollback
from rwkv7_jax.model import join_layers, split_layers
from rwkv7_jax.wkv_state import Offset, Recurrent, Residual
from tests.helpers import CONFIG, MODEL, random_state, weights

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 5)), jnp.int32)
COUNTS = jnp.asarray([0, 1, 2, 3, 4, 5], jnp.int32)
ONE_BY_ONE = RWKV7(dataclasses.replace(CONFIG, scan_layers=False))


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def starts():
    """A batched state with each kind of WKV state."""
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], 6, axis=1), random_state(3, 1.0))
    by = state.wkv.shape[:3]
    supports, gamma = noise(2, *by, 3, 8), jnp.abs(noise(4, *by))
    kinds = {
        "plain": state.wkv,
        "offset": Offset(state.wkv, noise(1, *state.wkv.shape)),
        "residual": Residual(state.wkv, noise(1, *by, 8, 3), supports, gamma),
        "recurrent": Recurrent(state.wkv, noise(1, *by, 8, 3), noise(5, *by), supports, gamma, noise(6, *by, 3)),
    }
    return {name: state._replace(wkv=wkv) for name, wkv in kinds.items()}


@functools.partial(jax.jit, static_argnums=0)
def rolled_back(model, params, state):
    logits, record = rollback.read(model, params, TOKENS, state)
    return logits, rollback.state_after(model.config, state, record, COUNTS)


@functools.partial(jax.jit, static_argnums=0)
def read_again(model, params, state):
    """A pass over all tokens, and one over each row's first ones."""
    valid = jnp.arange(5)[None] < COUNTS[:, None]
    logits, _ = functional.forward(model, params, TOKENS, state)
    return logits, functional.hidden(model, params, TOKENS, state, valid=valid)[1]


@pytest.mark.parametrize("kind", ["plain", "offset", "residual", "recurrent"])
def test_the_state_after_some_tokens_is_that_of_reading_them_alone(kind):
    state = starts()[kind]
    found, wanted = (call(MODEL, weights(), state) for call in (rolled_back, read_again))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(found[1].att_shift[:, 0] - found[1].att_shift[:, 5])).max() > 0.1


def test_so_it_is_where_layers_stand_one_by_one():
    state = starts()["plain"]
    logits, layers = rolled_back(ONE_BY_ONE, unstack_blocks(weights()), split_layers(state))
    wanted = read_again(MODEL, weights(), state)
    for a, b in zip(jax.tree.leaves((logits, join_layers(layers))), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rows_that_keep_nothing_or_all_are_bit_for_bit_what_they_were():
    state = starts()["plain"]
    _, after = rolled_back(MODEL, weights(), state)
    for a, b in zip(after, state, strict=True):
        np.testing.assert_array_equal(a[:, 0], b[:, 0])
    whole = jax.jit(functional.forward, static_argnums=0)(MODEL, weights(), TOKENS, state)[1]
    np.testing.assert_array_equal(after.wkv[:, 5], whole.wkv[:, 5])


def test_the_other_model_of_the_same_dimensions_keeps_its_own_trace():
    """Layers share traces by the class of the model: one that keeps inputs must not change the plain one."""
    state = split_layers(starts()["plain"])
    params = unstack_blocks(weights())
    rolled_back(ONE_BY_ONE, params, state)
    _, after = functional.step(ONE_BY_ONE, params, TOKENS, state)
    assert after[0].att_shift.shape == state[0].att_shift.shape
