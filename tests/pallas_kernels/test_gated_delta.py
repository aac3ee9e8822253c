"""The gated delta rule against two statements of it in float64: the matrix form, and the form of other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import gated_delta_rule, gpu, tpu
from pallas_kernels.op import WIDE

NAMES = ("q", "k", "v", "log_alpha", "beta", "s0")
FLOAT32 = 1e-5


def matrix_form(q, k, v, log_alpha, beta, s0):
    """S <- S diag(alpha) (I - beta k k^T) + beta v k^T, o = S q: arXiv:2412.06464, equation 10."""
    alpha = jnp.exp(jnp.broadcast_to(log_alpha if log_alpha.ndim == 4 else log_alpha[..., None], k.shape))

    def step(s, token):
        q, k, v, alpha, beta = token
        keep = jnp.eye(k.shape[-1])[None, None] - beta[..., None, None] * k[..., :, None] * k[..., None, :]
        s = jnp.matmul(s * alpha[..., None, :], keep) + beta[..., None, None] * v[..., :, None] * k[..., None, :]
        return s, jnp.einsum("bhvk,bhk->bhv", s, q)

    s, o = lax.scan(step, s0, tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, alpha, beta)))
    return jnp.moveaxis(o, 0, 1), s


def memory_form(q, k, v, log_alpha, beta, s0):
    """As flash-linear-attention states its naive recurrence (fla.ops.gated_delta_rule), with the key axis first.

    The memory [K, V] decays; what it holds for k is compared with v; beta of the difference is added under k.
    """
    decay = jnp.broadcast_to(log_alpha if log_alpha.ndim == 4 else log_alpha[..., None], k.shape)

    def step(memory, token):
        q, k, v, decay, beta = token
        memory = memory * jnp.exp(decay)[..., None]
        surprise = v - jnp.sum(memory * k[..., None], -2)
        memory = memory + k[..., None] * (beta[..., None] * surprise)[..., None, :]
        return memory, jnp.sum(memory * q[..., None], -2)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, decay, beta))
    memory, o = lax.scan(step, jnp.swapaxes(s0, -1, -2), tokens)
    return jnp.moveaxis(o, 0, 1), jnp.swapaxes(memory, -1, -2)


def draw(rng, size, *, channels=False, length=75):
    """Inputs by name, and cotangents: decays as a trained gate has them, most weak, some of them complete."""
    shape = (2, length, 2)
    keys = rng.standard_normal((*shape, size))
    log_alpha = -np.exp(rng.uniform(-6, 3, (*shape, size) if channels else shape)).clip(0, 20)
    inputs = {
        "q": rng.standard_normal((*shape, size)) / np.sqrt(size),
        "k": keys / np.linalg.norm(keys, axis=-1, keepdims=True),
        "v": rng.standard_normal((*shape, size)),
        "log_alpha": log_alpha,
        "beta": rng.uniform(0, 1, shape),
        "s0": rng.standard_normal((2, 2, size, size)),
    }
    cotangents = rng.standard_normal((*shape, size)), rng.standard_normal((2, 2, size, size))
    return {n: x.astype(np.float32) for n, x in inputs.items()}, tuple(x.astype(np.float32) for x in cotangents)


def value_and_gradients(op, inputs, cotangents):
    """{"o", "s_T", and gradients by input name}."""
    dtype = inputs["s0"].dtype
    outputs, pull = jax.vjp(op, *(inputs[n] for n in NAMES))
    grads = pull(tuple(jnp.asarray(x, z.dtype) for x, z in zip(cotangents, outputs, strict=True)))
    assert outputs[1].dtype == dtype
    return {"o": outputs[0], "s_T": outputs[1], **dict(zip(NAMES, grads, strict=True))}


def exact(form, inputs, cotangents):
    with jax.enable_x64(True):
        wide = {n: jnp.asarray(x, jnp.float64) for n, x in inputs.items()}
        found = jax.jit(lambda x: value_and_gradients(form, x, cotangents))(wide)
        return {n: np.asarray(x) for n, x in found.items()}


@pytest.mark.parametrize("form", [matrix_form, memory_form])
@pytest.mark.parametrize(("size", "channels"), [(64, False), (128, False), (64, True)])
def test_outputs_and_all_gradients(form, size, channels, rng, error):
    inputs, cotangents = draw(rng, size, channels=channels)
    found = jax.jit(lambda x: value_and_gradients(gated_delta_rule, x, cotangents))(inputs)
    errors = {n: error.max(found[n], x) for n, x in exact(form, inputs, cotangents).items()}
    assert max(errors.values()) <= FLOAT32, errors


@pytest.mark.parametrize(("name", "kernels"), [("gpu", gpu), ("tpu", tpu)])
def test_kernels(name, kernels, rng, error, monkeypatch):
    monkeypatch.setitem(WIDE, name, jax.jit(kernels.make_op(interpret=True, wide=True)))
    inputs, cotangents = draw(rng, 64)

    def op(*arrays):
        return gated_delta_rule(*arrays, implementation=name)

    found = jax.jit(lambda x: value_and_gradients(op, x, cotangents))(inputs)
    errors = {n: error.max(found[n], x) for n, x in exact(memory_form, inputs, cotangents).items()}
    assert max(errors.values()) <= FLOAT32, errors


def test_gradient_of_the_state_alone(rng, error):
    inputs, (do, ds) = draw(rng, 16)
    others = [jnp.asarray(inputs[n]) for n in NAMES[:5]]

    def loss(s0):
        o, s_last = gated_delta_rule(*others, s0)
        return jnp.sum(o * do) + jnp.sum(s_last * ds)

    expected = exact(memory_form, inputs, (do, ds))["s0"]
    assert error.max(jax.jit(jax.grad(loss))(jnp.asarray(inputs["s0"])), expected) <= FLOAT32


def test_bfloat16(rng, error):
    inputs, cotangents = draw(rng, 64)
    half = {n: jnp.asarray(x, jnp.bfloat16 if n in "qkv" else jnp.float32) for n, x in inputs.items()}
    found = jax.jit(lambda x: gated_delta_rule(*(x[n] for n in NAMES)))(half)
    assert (found[0].dtype, found[1].dtype) == (jnp.bfloat16, jnp.float32)
    rounded = {n: np.asarray(x.astype(jnp.float32)) for n, x in half.items()}
    expected = exact(memory_form, rounded, cotangents)
    assert error.l2(found[0], expected["o"]) <= 1e-2
    assert error.l2(found[1], expected["s_T"]) <= 1e-2


def test_complete_forgetting_is_a_reset(rng):
    """alpha = 0, whose logarithm is minus infinity, with gradients that stay finite."""
    inputs, _ = draw(rng, 16, length=20)
    inputs["log_alpha"][:, 7] = -np.inf
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(gated_delta_rule(*(x[n] for n in NAMES))[0][:, 7:] ** 2)))(inputs)
    assert all(np.all(np.isfinite(x)) for x in gradient.values())
    assert np.max(np.abs(gradient["v"][:, :7])) < 1e-7 < np.max(np.abs(gradient["v"][:, 7:]))


def test_padding_and_restarts_are_those_of_wkv7(rng, error):
    inputs, cotangents = draw(rng, 16, length=20)
    valid, reset = np.ones((2, 20), bool), np.zeros((2, 20), bool)
    valid[:, 12:], reset[:, 5] = False, True
    o, s_last = gated_delta_rule(*inputs.values(), valid=valid, reset=reset)
    part = {n: x if n == "s0" else x[:, 5:12] for n, x in inputs.items()} | {"s0": np.zeros_like(inputs["s0"])}
    expected = exact(memory_form, part, (cotangents[0][:, 5:12], cotangents[1]))
    assert error.max(o[:, 5:12], expected["o"]) <= FLOAT32
    assert error.max(s_last, expected["s_T"]) <= FLOAT32
    assert not np.any(o[:, 12:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": np.zeros((2, 20, 2, 1), np.float32)}, "beta must be float32 or bfloat16 (2, 20, 2)"),
        ({"log_alpha": np.zeros((2, 20), np.float32)}, "log_alpha must be float32 or bfloat16 (2, 20, 2) or (2, 20,"),
        ({"k": np.zeros((2, 20, 2, 8), np.float32)}, "k must be float32 or bfloat16 (2, 20, 2, 16) to fit q"),
        ({"q": np.zeros((2, 20, 2, 16), np.int32)}, "q must be float32 or bfloat16 [B, T, H, K], got int32"),
    ],
)
def test_refuses_in_one_line(change, message, rng):
    with pytest.raises(ValueError, match=r"^gated_delta_rule: ") as caught:
        gated_delta_rule(**(draw(rng, 16, length=20)[0] | change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
