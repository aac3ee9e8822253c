"""The block-doubling inverse, on what breaks a Neumann series too."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked.layout import chunk_size
from pallas_kernels.chunked.math import unit_lower_inverse


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 64])
@pytest.mark.parametrize("kind", ["random", "repeated keys"])
def test_inverse(size, kind, rng):
    lower = {
        "random": rng.uniform(-1, 1, (3, size, size)) / np.sqrt(size),
        "repeated keys": np.full((3, size, size), -0.999),
    }[kind]
    lower = np.tril(lower, -1)
    inverse = np.asarray(unit_lower_inverse(jnp.asarray(lower, jnp.float32)), np.float64)
    expected = np.linalg.inv(np.eye(size) - lower.astype(np.float32).astype(np.float64))
    assert np.max(np.abs(inverse - expected)) <= 1e-6 * np.max(np.abs(expected))


def test_chunk_size_is_a_power_of_two_that_wastes_less_than_half():
    for length in range(1, 300):
        size = chunk_size(length)
        assert size & (size - 1) == 0
        assert size <= 32
        assert length >= 32 or length <= size < 2 * length
