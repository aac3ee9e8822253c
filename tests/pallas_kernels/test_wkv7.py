"""One suite for every implementation of the op: outputs and all gradients against a float64 oracle."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import wkv7
from pallas_kernels.bench.shapes import REGIMES, TEST, TEST_RELEASED, Shape, make_example

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")
FLOAT32 = 1e-5
SMALL = Shape(2, 65, 2, 8, 12)
MANY = SMALL._replace(batch=16)
"""Rows enough that the relative L2 error, 4.4e-3 at most, moves by no more than 0.1e-3 from one draw to the next."""


@functools.cache
def value_and_gradients(implementation):
    """jitted (inputs, dy, ds, valid, reset) -> {"y", "s_T", and gradients by input name}."""

    def run(inputs, dy, ds, valid, reset):
        def op(*arrays):
            return wkv7(*arrays, valid=valid, reset=reset, implementation=implementation)

        (y, s_last), pull = jax.vjp(op, *(inputs[n] for n in NAMES))
        return {"y": y, "s_T": s_last, **dict(zip(NAMES, pull((dy, ds)), strict=True))}

    return jax.jit(run)


def run(implementation, example, valid, reset):
    inputs = {n: jnp.asarray(x) for n, x in example.inputs.items()}
    return value_and_gradients(implementation)(inputs, jnp.asarray(example.dy), jnp.asarray(example.ds), valid, reset)


def flags(rng, shape, padding=0.2, resets=0.1):
    """Random (valid, reset), each Bool[B, T]."""
    size = (shape.batch, shape.length)
    return rng.random(size) >= padding, rng.random(size) < resets


def poisoned(example, valid):
    """The same example with NaN in all that belongs to invalid tokens, cotangents included."""
    on = valid[:, :, None, None]
    inputs = {n: x if n == "s0" else np.where(on, x, np.float32(np.nan)) for n, x in example.inputs.items()}
    return example._replace(inputs=inputs, dy=np.where(on, example.dy, np.float32(np.nan)))


@pytest.mark.parametrize("shape", TEST, ids=lambda shape: f"T{shape.length}")
def test_matches_the_oracle(implementation, fit, shape, rng, oracle, error):
    shape = fit(shape)
    nowhere = np.zeros((shape.batch, shape.length), bool)
    for regime in REGIMES:
        example = make_example(rng, shape, regime)
        for valid, reset in ((~nowhere, nowhere), flags(rng, shape)):
            expected = oracle(example, valid, reset)
            result = run(implementation, poisoned(example, valid), valid, reset)
            errors = {n: error.max(result[n], x) for n, x in expected.items()}
            assert max(errors.values()) <= FLOAT32, (regime, errors)
            for name in ("y", *NAMES[:6]):
                assert not np.any(np.asarray(result[name])[~valid]), f"{name} is not exactly 0 on padding"


def test_matches_the_oracle_at_the_released_head_size(implementation, rng, oracle, error):
    everywhere = np.ones((TEST_RELEASED.batch, TEST_RELEASED.length), bool)
    for regime in REGIMES:
        example = make_example(rng, TEST_RELEASED, regime)
        expected = oracle(example, everywhere, ~everywhere)
        result = run(implementation, example, everywhere, ~everywhere)
        errors = {n: error.max(result[n], x) for n, x in expected.items()}
        assert max(errors.values()) <= FLOAT32, (regime, errors)


@pytest.mark.parametrize("regime", REGIMES)
def test_bfloat16_inputs(implementation, fit, regime, rng, as_bfloat16, oracle, error):
    shape = fit(MANY)
    example = as_bfloat16(make_example(rng, shape, regime))
    valid, reset = flags(rng, shape)
    result = run(implementation, example, valid, reset)
    assert {n: result[n].dtype for n in ("y", "s_T", "v", "s0")} == {
        "y": jnp.bfloat16, "s_T": jnp.float32, "v": jnp.bfloat16, "s0": jnp.float32,
    }  # fmt: skip
    for name, expected in oracle(example, valid, reset).items():
        limit = 8e-2 if regime == "aligned" and name in ("a", "b") else 5e-3
        assert error.l2(result[name], expected) <= limit, name


def test_without_flags_is_all_valid_and_no_resets(implementation, fit, rng):
    small = fit(SMALL)
    arrays = [jnp.asarray(x) for x in make_example(rng, small).inputs.values()]
    on = jnp.ones((small.batch, small.length), bool)
    op = jax.jit(partial(wkv7, implementation=implementation))
    for plain, flagged in zip(op(*arrays), op(*arrays, valid=on, reset=~on), strict=True):
        np.testing.assert_allclose(plain, flagged, rtol=0, atol=FLOAT32 * float(jnp.max(jnp.abs(plain))))


def test_whole_row_equals_two_calls_equals_token_by_token(implementation, fit, rng, error):
    small = fit(SMALL)
    inputs = dict(zip(NAMES, map(jnp.asarray, make_example(rng, small).inputs.values()), strict=True))
    valid, reset = (jnp.asarray(x) for x in flags(rng, small))
    op = jax.jit(partial(wkv7, implementation=implementation))

    def pieces(*lengths):
        state, ys, start = inputs["s0"], [], 0
        for length in lengths:
            part = slice(start, start := start + length)
            y, state = op(*(inputs[n][:, part] for n in NAMES[:6]), state, valid=valid[:, part], reset=reset[:, part])
            ys.append(y)
        return jnp.concatenate(ys, 1), state

    whole = [np.asarray(x, np.float64) for x in pieces(65)]
    for lengths in ((64, 1), (1, 64), (1,) * 65):
        for part, expected in zip(pieces(*lengths), whole, strict=True):
            assert error.max(part, expected) <= FLOAT32, lengths


def test_rows_do_not_see_each_other(implementation, fit, rng):
    small = fit(SMALL)
    first, other = make_example(rng, small), make_example(rng, small, "strong")
    mixed = jax.tree.map(lambda x, y: np.concatenate([x[:1], y[1:]]), first, other)
    valid, reset = flags(rng, small)
    results = [run(implementation, example, valid, reset) for example in (first, mixed)]
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name][0], results[1][name][0], err_msg=name)
    assert np.any(results[0]["y"][1] != results[1]["y"][1])


def test_a_reset_forgets_everything_before_it(implementation, fit, rng, error):
    small = fit(SMALL)
    late = np.arange(small.length)[None, :, None, None] >= 40
    example = make_example(rng, small)
    example = example._replace(dy=np.where(late, example.dy, np.float32(0)))
    valid, reset = flags(rng, small)
    valid[:, 40], reset[:, 40] = False, True
    result = run(implementation, example, valid, reset)
    changed = make_example(rng, small).inputs
    inputs = {n: changed[n] if n == "s0" else np.where(late, x, changed[n]) for n, x in example.inputs.items()}
    other = run(implementation, example._replace(inputs=inputs), valid, reset)
    for part, expected in ((result["s_T"], other["s_T"]), (result["y"][:, 40:], other["y"][:, 40:])):
        assert error.max(part, expected) <= FLOAT32
    assert not np.any(result["s0"]), "the gradient of s0 must not cross a reset"


def test_state_passes_through_a_row_of_padding(implementation, fit, rng):
    small = fit(SMALL)
    example = make_example(rng, small)
    off = np.zeros((small.batch, small.length), bool)
    result = run(implementation, poisoned(example, off), off, off)
    np.testing.assert_array_equal(result["s_T"], example.inputs["s0"])
    np.testing.assert_array_equal(result["s0"], example.ds)
