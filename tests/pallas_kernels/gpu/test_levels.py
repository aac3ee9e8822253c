"""Which pairs of tokens part at which level, and which decays lie between them."""

import numpy as np
import pytest

from pallas_kernels.chunked.levels import spans
from pallas_kernels.gpu.levels import before, between, pairs


@pytest.mark.parametrize("size", [16, 32])
def test_the_levels_are_those_of_the_chunked_form(size):
    span = spans(size)
    for level in range(size.bit_length() - 1):
        second = span.second[level]
        np.testing.assert_array_equal(pairs(size, level), span.block[level] & second & ~second.T)
        np.testing.assert_array_equal(np.asarray(between(size, level)), span.r[level] | span.bk[level])
        np.testing.assert_array_equal(np.asarray(before(size, level)) * second, span.a[level])


@pytest.mark.parametrize("weights", [before, between])
def test_transposed(weights):
    for level in range(4):
        np.testing.assert_array_equal(weights(16, level, transposed=True), np.asarray(weights(16, level)).T)
