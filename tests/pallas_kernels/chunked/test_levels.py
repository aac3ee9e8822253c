"""The op with `min_log_w` = -20 on every implementation that takes it: outputs and all gradients against float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.op
from pallas_kernels import gpu, tpu, wkv7
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.chunked import op as chunked
from pallas_kernels.chunked.levels import spans

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")
FLOAT32 = 1e-5
ACCELERATOR_SCHEDULE = "chunked, accelerator schedule"
OPS = {
    ACCELERATOR_SCHEDULE: lambda: chunked.make_op(partial(chunked.accelerator_rule, wide=True)),
    "gpu": lambda: gpu.make_op(interpret=True, wide=True),
    "tpu": lambda: tpu.make_op(interpret=True, wide=True),
}
RELEASED = Shape(1, 131, 2, 64, 64)


def any_decay(rng, vectors):
    return rng.uniform(-20, 0, vectors)


def forgetful(rng, vectors):
    """Hardly any decay, but a tenth of the tokens forget everything, and some channels of others."""
    everything = (rng.random(vectors[:3]) < 0.1)[..., None]
    return np.where(everything | (rng.random(vectors) < 0.05), -20.0, -0.05 * rng.random(vectors))


def one_a_head(rng, vectors):
    return np.broadcast_to(-np.exp(rng.uniform(-6, 3, (*vectors[:3], 1))), vectors).clip(-20)


def lowest(rng, vectors):
    return np.full(vectors, -20.0)


REGIMES = {"any": any_decay, "forgetful": forgetful, "one a head": one_a_head, "lowest": lowest}


@pytest.fixture(scope="module", params=[n for n in pallas_kernels.op.WIDE if n not in (*OPS, "triton")] + [*OPS])
def run(request):
    """run(example, valid, reset) -> {"y", "s_T", gradients by input name}; kernels for GPU and TPU are interpreted.

    Those of Triton have an interpreter of their own, see triton/test_triton.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.param in OPS:
            patch.setitem(pallas_kernels.op.WIDE, request.param, jax.jit(OPS[request.param]()))
            patch.setitem(pallas_kernels.op.IMPLEMENTATIONS, request.param, None)

        def compute(inputs, dy, ds, valid, reset):
            def op(*arrays):
                return wkv7(*arrays, valid=valid, reset=reset, min_log_w=-20.0, implementation=request.param)

            (y, s_last), pull = jax.vjp(op, *(inputs[n] for n in NAMES))
            return {"y": y, "s_T": s_last, **dict(zip(NAMES, pull((dy, ds)), strict=True))}

        jitted = jax.jit(compute)
        yield lambda x, *flags: jitted({n: jnp.asarray(z) for n, z in x.inputs.items()}, x.dy, x.ds, *flags)


def example_of(rng, shape, regime):
    example = make_example(rng, shape)
    log_w = REGIMES[regime](rng, example.inputs["log_w"].shape).astype(np.float32)
    return example._replace(inputs=example.inputs | {"log_w": log_w})


def floor_of(request_name, expected, example):
    """What errors of d log_w count against beside its own largest entry, on the TPU: see docs/kernels.md."""
    return float(np.max(np.abs(expected["k"] * example.inputs["k"]))) if request_name == "tpu" else 0.0


@pytest.mark.parametrize("regime", REGIMES)
def test_matches_the_oracle(run, request, regime, rng, oracle, error):
    name = request.node.callspec.params["run"]
    example = example_of(rng, RELEASED, regime)
    size = (RELEASED.batch, RELEASED.length)
    plain = np.ones(size, bool), np.zeros(size, bool)
    for valid, reset in (plain, (rng.random(size) >= 0.2, rng.random(size) < 0.05)):
        expected, result = oracle(example, valid, reset), run(example, valid, reset)
        errors = {n: error.max(result[n], x) for n, x in expected.items()}
        largest = max(float(np.max(np.abs(expected["log_w"]))), floor_of(name, expected, example))
        errors["log_w"] = float(np.max(np.abs(np.asarray(result["log_w"]) - expected["log_w"]))) / largest
        assert max(errors.values()) <= FLOAT32, errors


def test_bfloat16_vectors(run, rng, oracle, error):
    example = example_of(rng, RELEASED._replace(batch=4), "forgetful")
    half = {n: x if n in ("s0", "log_w") else x.astype(jnp.bfloat16) for n, x in example.inputs.items()}
    example = example._replace(inputs=half, dy=example.dy.astype(jnp.bfloat16))
    valid = np.ones((4, RELEASED.length), bool)
    result = run(example, valid, ~valid)
    assert (result["y"].dtype, result["s_T"].dtype, result["log_w"].dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    for name, expected in oracle(example, valid, ~valid).items():
        assert error.l2(result[name], expected) <= 5e-3, name


def test_gradient_of_the_state_alone(rng):
    """The cheap backward, on the schedules and kernels that have one of their own."""
    x = example_of(rng, RELEASED, "any")
    arrays = [jnp.asarray(x.inputs[n]) for n in NAMES]

    def loss(op, s0):
        y, s_last = op(*arrays[:6], s0)
        return jnp.sum(y * x.dy) + jnp.sum(s_last * x.ds)

    expected, *found = (
        jax.jit(jax.grad(partial(loss, op)))(arrays[6])
        for op in (pallas_kernels.op.IMPLEMENTATIONS["scan"], chunked.wkv7_chunked_wide, *(op() for op in OPS.values()))
    )
    for gradient in found:
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=FLOAT32 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.parametrize("size", [1, 2, 16, 32])
def test_every_pair_has_one_level_and_its_spans_join(size):
    """The factors of reader t and writer s cover the tokens s+1 ... t between them, or up to t - 1 for a."""
    span = spans(size)
    for t in range(size):
        for s in range(t):
            levels = [
                i for i in range(len(span.block)) if span.block[i, t, s] and span.second[i, t] and not span.second[i, s]
            ]
            assert len(levels) == 1
            here = levels[0]
            between = (np.arange(size) > s) & (np.arange(size) <= t)
            np.testing.assert_array_equal(span.r[here, t] | span.bk[here, s], between)
            assert not np.any(span.r[here, t] & span.bk[here, s])
            np.testing.assert_array_equal(span.a[here, t] | span.bk[here, s], between & (np.arange(size) < t))
