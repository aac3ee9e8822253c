"""Quantised weights: error bounds, packing, products on both ways, gradients, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv7_jax import quantisation
from rwkv7_jax.quantisation import QuantisedWeight, dequantise, integers, quantise, to_numpy


def product(x: jax.Array, weight: QuantisedWeight) -> jax.Array:
    """The product in the dtype of the activations."""
    return quantisation.product(x, weight, x.dtype)


CASES = [(8, 0), (8, 16), (4, 0), (4, 16)]


@pytest.fixture(scope="module")
def matrix():
    """A matrix [24, 32] with rows of different sizes, one of them zero."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 32)).astype(np.float32) * np.logspace(-3, 2, 24, dtype=np.float32)[:, None]
    weight[5] = 0
    return weight


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_no_number_is_off_by_more_than_half_a_step_of_its_group(matrix, bits, group):
    weight = quantise(matrix, bits, group)
    assert weight.shape == matrix.shape
    assert weight.bits == bits
    assert weight.nbytes == matrix.size * bits // 8 + 4 * matrix.size // (group or 32)
    error = np.abs(np.asarray(dequantise(weight)) - matrix).reshape(24, -1, group or 32)
    largest = np.abs(matrix).reshape(error.shape).max(axis=-1, keepdims=True)
    # With 4 bits the scale may be chosen so that the largest number is cut: by 0.3 of it at most.
    assert (error <= (largest / 127 * 0.5001 if bits == 8 else largest * 0.3001)).all()


def test_quantising_what_was_quantised_changes_nothing(matrix):
    once = np.asarray(dequantise(quantise(matrix)))
    np.testing.assert_allclose(np.asarray(dequantise(quantise(once))), once, rtol=1e-6)


@given(st.lists(st.integers(-7, 7), min_size=8, max_size=8))
def test_four_bits_pack_and_unpack(numbers):
    row = np.array([[*numbers, 7.0, -7.0]], np.float32)
    weight = quantise(row, 4, 0)
    np.testing.assert_array_equal(np.asarray(dequantise(weight)), row)
    assert integers(weight).tolist() == row.astype(int).tolist()


@pytest.mark.parametrize(("bits", "group"), [*CASES, (8, 32), (4, 32), (4, 64)])
@pytest.mark.parametrize("rows", [1, 3, 8, 65])
def test_a_product_is_that_with_the_dequantised_matrix(matrix, bits, group, rows):
    wide = matrix if group < 32 else np.concatenate([matrix, -2 * matrix], axis=1)
    weight = quantise(wide, bits, group)
    x = jax.random.normal(jax.random.key(1), (rows, wide.shape[1]))
    exact = np.asarray(x, np.float64) @ np.asarray(dequantise(weight), np.float64).T
    got = jax.jit(product)(x, weight)
    assert got.dtype == jnp.float32
    sums = np.abs(np.asarray(x)).max() * np.abs(np.asarray(dequantise(weight))).sum(axis=1)
    as_floats = rows > 3 or (rows == 3 and (bits, group) != (8, 0)) or group == 16
    assert (np.abs(np.asarray(got) - exact) <= (3e-7 if as_floats else 2e-5) * sums + 1e-12).all()


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32)])
@pytest.mark.parametrize("rows", [8, 65])
def test_a_large_matrix_is_multiplied_part_by_part(bits, group, rows):
    outputs, inputs = quantisation.TILE // 64 + 7, 96  # two parts, the second of which begins within the first
    rng = np.random.default_rng(0)
    weight = quantise(rng.standard_normal((outputs, inputs)).astype(np.float32), bits, group)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    matrix = to_numpy(weight).astype(np.float64)
    got = np.asarray(jax.jit(product)(x, jax.tree.map(jnp.asarray, weight)))
    bound = 3e-7 * np.abs(x).max() * np.abs(matrix).sum(axis=1)
    assert (np.abs(got - x.astype(np.float64) @ matrix.T) <= bound).all()


@pytest.mark.parametrize(("bits", "group"), CASES)
@pytest.mark.parametrize("rows", [1, 8, 300])
def test_products_in_bfloat16_round_factors_and_keep_float32_sums(matrix, bits, group, rows):
    weight = quantise(matrix, bits, group)
    x = jax.random.normal(jax.random.key(1), (rows, matrix.shape[1]))
    got, pull = jax.vjp(lambda x: quantisation.product(x, weight, jnp.bfloat16), x)
    assert got.dtype == jnp.float32
    exact, dense = np.asarray(x, np.float64), np.asarray(dequantise(weight), np.float64)
    # Each factor is off by at most 2^-9 of itself; int8 numbers with a scale a row are exact.
    bound = 2.1 * 2.0**-9 * np.abs(exact) @ np.abs(dense).T + 2e-5 * np.abs(exact).max() * np.abs(dense).sum(axis=1)
    off = np.abs(np.asarray(got) - exact @ dense.T)
    assert (off <= bound + 1e-12).all()
    if rows > 4:
        assert off.max() > 1e-5 * np.abs(dense).max()
    dy = np.asarray(jax.random.normal(jax.random.key(2), got.shape))
    (dx,) = pull(dy)
    assert dx.dtype == jnp.float32
    assert (np.abs(np.asarray(dx) - dy @ dense) <= 2.1 * 2.0**-8 * np.abs(dy) @ np.abs(dense) + 1e-12).all()


@pytest.mark.parametrize("rows", [1, 4])
def test_long_rows_are_multiplied_as_integers_too(rows):
    rng = np.random.default_rng(0)
    weight = quantise(rng.standard_normal((24, quantisation.LONG)).astype(np.float32))
    x = rng.standard_normal((rows, quantisation.LONG)).astype(np.float32)
    matrix = to_numpy(weight).astype(np.float64)
    got = np.asarray(jax.jit(product)(x, jax.tree.map(jnp.asarray, weight)))
    off = np.abs(got - x.astype(np.float64) @ matrix.T)
    assert (off <= 2e-5 * np.abs(x).max() * np.abs(matrix).sum(axis=1)).all()
    columns = jax.make_jaxpr(product)(x, weight).pretty_print()
    assert f"i32[24,{2 * rows}]" in columns


def test_a_row_of_very_small_activations_is_finite(matrix):
    tiny = jnp.full((1, 32), 1e-37)
    for weight in (quantise(matrix), quantise(matrix, 4)):
        assert np.isfinite(jax.jit(product)(tiny, weight)).all()


def test_activations_of_any_rank_and_of_bfloat16(matrix):
    weight = quantise(matrix)
    x = jax.random.normal(jax.random.key(1), (2, 3, 32))
    np.testing.assert_array_equal(product(x, weight), product(x.reshape(6, 32), weight).reshape(2, 3, 24))
    half = product(x.astype(jnp.bfloat16), weight)
    assert half.dtype == jnp.bfloat16
    assert not product(jnp.zeros((1, 32)), weight).any()


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_the_gradient_of_x_is_that_of_the_dequantised_matrix(matrix, bits, group):
    weight = quantise(matrix, bits, group)
    x = jax.random.normal(jax.random.key(1), (3, 32))
    dy = jax.random.normal(jax.random.key(2), (3, 24))
    (dx,) = jax.vjp(lambda x: product(x, weight), x)[1](dy)
    np.testing.assert_allclose(dx, np.asarray(dy) @ np.asarray(dequantise(weight)), rtol=1e-4, atol=1e-4)


def test_stacked_weights_are_scanned_layer_by_layer(matrix):
    layers = quantise(matrix), quantise(2 * matrix)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    assert stacked.shape == (2, 24, 32)
    x = jax.random.normal(jax.random.key(1), (1, 32))
    _, both = jax.lax.scan(lambda x, weight: (x, product(x, weight)), x, jax.tree.map(jnp.asarray, stacked))
    np.testing.assert_array_equal(both[0], product(x, quantise(matrix)))
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "bits", "group", "words"),
    [
        (np.ones((2, 8)), 8, 3, "groups of 3 do not divide rows of 8"),
        (np.ones((2, 9)), 4, 3, "groups of 3"),
        (np.array([[np.nan, 1]]), 8, 0, "NaN or infinite"),
    ],
)
def test_what_cannot_be_quantised_is_one_line(weight, bits, group, words):
    with pytest.raises(ValueError, match=words) as raised:
        quantise(weight, bits, group)
    assert "\n" not in str(raised.value)


def test_scales_of_bfloat16_weights_are_those_of_their_float32_values(matrix):
    half = jnp.asarray(matrix, jnp.bfloat16)
    np.testing.assert_array_equal(
        quantise(np.asarray(half)).values, quantise(np.asarray(half.astype(jnp.float32))).values
    )
    assert quantisation.GROUPS == {8: 0, 4: 32}
