"""What the programs of a chunk compute before they see a state."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gpu.chunk import Numerics
from pallas_kernels.gpu.parallel import (
    ENDS,
    ENTER,
    FROM_MIDDLE,
    IDENTITY,
    LEAVE,
    ONWARD,
    WHOLE,
    inside,
    make_weights,
    rest_of_inverse,
    row_sums,
)

EXACT, ROUNDED = (Numerics(jnp.dtype(dtype), interpret=True) for dtype in (jnp.float32, jnp.bfloat16))


@pytest.mark.parametrize("size", [16, 64])
def test_the_inverse_is_exact_where_a_series_of_powers_would_blow_up(size):
    """All keys alike: the entries of the powers grow to 1e6 and beyond before they cancel."""
    lower = np.tril(np.full((size, size), -0.999), -1)
    rest = rest_of_inverse(EXACT, jnp.asarray(lower, jnp.float32))
    np.testing.assert_allclose(rest, np.linalg.inv(np.eye(size) - lower) - np.eye(size), atol=1e-6)


def test_the_diagonal_of_ones_is_not_in_it(rng):
    lower = np.tril(rng.standard_normal((64, 64)) / 8, -1)
    rest = np.asarray(rest_of_inverse(ROUNDED, jnp.asarray(lower, jnp.float32)))
    assert not np.any(np.triu(rest))
    wanted = np.linalg.inv(np.eye(64) - lower) - np.eye(64)
    assert np.linalg.norm(rest - wanted) <= 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_sums_of_rows_are_as_exact_as_float32_in_bfloat16_products(dtype, rng):
    x = jnp.asarray(rng.standard_normal((64, 32)), dtype)
    weights = np.tril(np.ones((64, 64))) - (np.arange(64) <= 31)
    wanted = weights @ np.asarray(x, np.float64)
    np.testing.assert_allclose(row_sums(ROUNDED, jnp.asarray(weights, jnp.float32), x), wanted, atol=2e-4)


@pytest.mark.parametrize("size", [16, 32])
def test_the_sums_that_the_weights_stand_for(size, rng):
    weights, x = np.asarray(make_weights(size, ROUNDED.operand), np.float64), rng.standard_normal((size, 8))
    sums, middle = weights @ x, (size - 1) // 2
    from_start = np.cumsum(x, axis=0)
    np.testing.assert_allclose(sums[FROM_MIDDLE], from_start - from_start[middle], atol=1e-12)
    np.testing.assert_array_equal(sums[IDENTITY], x)
    np.testing.assert_allclose(sums[ONWARD], np.cumsum(x[::-1], axis=0)[::-1], atol=1e-12)
    wanted = {ENTER: from_start[middle], LEAVE: from_start[-1] - from_start[middle], WHOLE: from_start[-1]}
    for row, end in wanted.items():
        np.testing.assert_allclose(sums[ENDS, row], end, atol=1e-12)
    assert not np.any(weights[ENDS, len(wanted) :])


def test_what_is_inside():
    assert inside((16, 64), None, 64) is None
    assert np.argwhere(np.asarray(inside((16, 16), 2, 1))).tolist() == [[0, 0], [1, 0]]
