"""y_t = y_t^0 + S_0 q_t: a layer's output is exactly affine in its initial state."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import wkv7
from state_tuning.dbp.queries import state_queries


def random_inputs(seed: int, batch=2, time=23, heads=2, size=4):
    """r, log_w, k, v, a, b and S_0 as a released layer makes them, in float64."""
    rng = np.random.default_rng(seed)
    shape = (batch, time, heads, size)
    r, k, v, kk = (rng.normal(size=shape) for _ in range(4))
    log_w = -np.exp(-0.5) * rng.uniform(size=shape)
    kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
    return r, log_w, k, v, -kk, kk * rng.uniform(size=shape), rng.normal(size=(batch, heads, size, size))


def recurrence(r, log_w, k, v, a, b, state):
    """The definition, token by token, in the precision of its inputs: y [B, T, H, V]."""
    out = []
    for t in range(r.shape[1]):
        removed = np.einsum("bhvk,bhk->bhv", state, a[:, t])
        state = state * np.exp(log_w[:, t])[:, :, None]
        state = state + np.einsum("bhv,bhk->bhvk", removed, b[:, t]) + np.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        out.append(np.einsum("bhvk,bhk->bhv", state, r[:, t]))
    return np.stack(out, axis=1)


def test_the_identity_holds_to_float64():
    r, log_w, k, v, a, b, state = random_inputs(0)
    identity = np.broadcast_to(np.eye(r.shape[-1]), state.shape)
    q = recurrence(r, log_w, k, np.zeros_like(v), a, b, identity)
    affine = recurrence(r, log_w, k, v, a, b, np.zeros_like(state)) + np.einsum("bhvk,bthk->bthv", state, q)
    np.testing.assert_allclose(affine, recurrence(r, log_w, k, v, a, b, state), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 2])
def test_state_queries_match_the_definition(seed):
    exact = random_inputs(seed)
    r, log_w, k, v, a, b, state = (jnp.asarray(x, jnp.float32) for x in exact)
    q = state_queries(r, log_w, k, a, b)
    identity = np.broadcast_to(np.eye(r.shape[-1]), state.shape)
    expected = recurrence(*exact[:3], np.zeros_like(exact[3]), *exact[4:6], identity)
    np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-5)
    zero, _ = wkv7(r, log_w, k, v, a, b, jnp.zeros_like(state))
    full, _ = wkv7(r, log_w, k, v, a, b, state)
    affine = zero + jnp.einsum("bhvk,bthk->bthv", state, q)
    np.testing.assert_allclose(affine, full, rtol=1e-5, atol=1e-5)


def test_a_reset_ends_the_influence_and_padding_has_none():
    r, log_w, k, _, a, b, _ = (jnp.asarray(x, jnp.float32) for x in random_inputs(3))
    token = jnp.broadcast_to(jnp.arange(r.shape[1])[None], r.shape[:2])
    q = state_queries(r, log_w, k, a, b, valid=token != 4, reset=token == 9)
    speaks = np.asarray(jnp.abs(q).max((0, 2, 3)) > 0)
    assert speaks.tolist() == [t < 9 and t != 4 for t in range(r.shape[1])]
