"""TimeMix and ChannelMix alone, against a float64 transcription of the released formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import ChannelMix, TimeMix
from rwkv7_jax.layers import normalise
from tests.rwkv7_jax.test_model import noisy


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def time_mix_oracle(p, x, shift, state, v_first, head):
    """One row of text in float64, token by token (arXiv 2503.14456, as released)."""
    weights = {name: value.get("weight") if isinstance(value, dict) else value for name, value in p.items()}
    ln_bias = np.asarray(p["ln_x"]["bias"], np.float64)
    p = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    width, outs, values = x.shape[1], [], []
    for t, now in enumerate(x):
        xx, shift = shift - now, now
        r, k, v = (p[m] @ (now + xx * p[f"x_{m[0]}"]) for m in ("receptance", "key", "value"))
        xw, xa, xg, xv = (now + xx * p[f"x_{c}"] for c in "wagv")
        w = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + np.tanh(xw @ p["w1"]) @ p["w2"]))
        a = sigmoid(p["a0"] + xa @ p["a1"] @ p["a2"])
        gate = sigmoid(xg @ p["g1"]) @ p["g2"]
        values.append(v)
        if v_first is not None:
            v = v + (v_first[t] - v) * sigmoid(p["v0"] + xv @ p["v1"] @ p["v2"])
        kk = (k * p["k_k"]).reshape(-1, head)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * p["k_a"])
        r, w, k, v, a = (z.reshape(-1, head) for z in (r, w, k, v, a))
        y = np.empty_like(v)
        for h in range(len(v)):
            removed = state[h] @ -kk[h]
            state[h] = state[h] * w[h] + np.outer(removed, kk[h] * a[h]) + np.outer(v[h], k[h])
            y[h] = state[h] @ r[h]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 64e-5)
        y = y.reshape(width) * p["ln_x"] + ln_bias
        y = y + ((r * k * p["r_k"]).sum(1, keepdims=True) * v).reshape(width)
        outs.append(p["output"] @ (y * gate))
    return np.stack(outs), np.stack(values), state


@pytest.mark.parametrize(("width", "head", "later"), [(24, 8, False), (24, 8, True), (20, 20, True)])
def test_time_mix_matches_the_released_formulas(width, head, later):
    rng = np.random.default_rng(width + later)
    x, first = (rng.normal(size=(1, 6, width)).astype(np.float32) for _ in range(2))
    shift = rng.normal(size=(1, width)).astype(np.float32)
    wkv = rng.normal(size=(1, width // head, head, head)).astype(np.float32)
    v_first = jnp.asarray(first) if later else None
    module = TimeMix(head, decay_lora=5, aaa_lora=6, mv_lora=7, gate_lora=9, layer_id=1, n_layer=3)
    params = jax.jit(module.init)(jax.random.key(0), x, shift, wkv, v_first)["params"]
    params = noisy(params, jax.random.key(1))
    out, last, end, values = jax.jit(module.apply)({"params": params}, x, shift, wkv, v_first)
    want, want_values, want_end = time_mix_oracle(
        params,
        x[0].astype(float),
        shift[0].astype(float),
        wkv[0].astype(float),
        first[0].astype(float) if later else None,
        head,
    )
    np.testing.assert_allclose(out[0], want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(end[0], want_end, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(last, x[:, -1])
    np.testing.assert_allclose(values[0], first[0] if later else want_values, rtol=2e-5, atol=2e-5)


def test_channel_mix_matches_the_released_formulas():
    rng = np.random.default_rng(0)
    x, shift = rng.normal(size=(2, 5, 12)).astype(np.float32), rng.normal(size=(2, 12)).astype(np.float32)
    module = ChannelMix(dim_ffn=20, layer_id=1, n_layer=2)
    params = noisy(jax.jit(module.init)(jax.random.key(0), x, shift)["params"], jax.random.key(1))
    out, last = jax.jit(module.apply)({"params": params}, x, shift)
    before = np.concatenate([shift[:, None], x[:, :-1]], axis=1).astype(float)
    mixed = x + (before - x) * np.asarray(params["x_k"], float)
    want = (
        np.maximum(mixed @ np.asarray(params["key"]["weight"], float).T, 0) ** 2
        @ np.asarray(params["value"]["weight"]).T
    )
    np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(last, x[:, -1])


def test_channel_mix_width_defaults_to_four_times_the_input():
    params = ChannelMix().init(jax.random.key(0), jnp.zeros((1, 1, 6)), jnp.zeros((1, 6)))["params"]
    assert params["key"]["weight"].shape == (24, 6)


def test_normalise_is_finite_at_zero():
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(normalise(x)))(jnp.zeros((1, 4)))
    assert value == 0
    assert jnp.all(jnp.isfinite(gradient))
