"""Quantised matrices of ggml: values as the gguf package (0.19.0) computes them, and slices of them."""

import numpy as np
import pytest

from rwkv7_jax.checkpoint.ggml_blocks import BYTES, BlockMatrix

PLACES = [0, 1, 2, 15, 16, 17, 31]
GOLDEN = {
    "Q4_0": ("00b618d0ea2f44f2ae0d81f56f09c0f93f35", [0.0, 3.0, -0.75, 1.125, 2.625, -1.875, 1.875]),
    "Q4_1": (
        "6336fac1e73f26d1bb1d52f38e0a90f64f17d0ca",
        [-0.194091796875, 2.999267578125, -0.59326171875, 1.00341796875, 2.60009765625, -1.790771484375, 1.8017578125],
    ),
    "Q5_0": ("00b2cd6c66322090c44f88f35b0af2fadf1270d25f6a", [0.0, 3.0, -0.75, 1.125, 2.625, -1.6875, 1.875]),
    "Q5_1": (
        "2e32fac1329399cddf6f4cb1871cb5f60d0631ed8f3ea0a5",
        [-0.091552734375, 2.998291015625, -0.6708984375, 1.067138671875, 2.612060546875, -1.82958984375, 2.03271484375],
    ),
    "Q8_0": (
        "0c26007ee08a3f65a7b16d3286ed7ff2852e70b6a362438cdb7d05811b77c6985553",
        [0.0, 2.9761962890625, -0.755859375, 1.0865478515625, 2.6455078125, -1.7479248046875, 1.96051025390625],
    ),
}
"""Type -> (a block of 3 sin(1.7 i) by gguf.quants.quantize, dequantize's numbers at PLACES)."""


def blocks(kind, rows=1, columns=1):
    data = np.frombuffer(bytes.fromhex(GOLDEN[kind][0]), np.uint8)
    return np.tile(data, (rows, columns, 1))


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_block_has_the_numbers_of_ggml(kind):
    assert len(bytes.fromhex(GOLDEN[kind][0])) == BYTES[kind]
    matrix = BlockMatrix(kind, blocks(kind))
    assert np.asarray(matrix)[0, PLACES].tolist() == GOLDEN[kind][1]


@pytest.mark.parametrize("kind", GOLDEN)
def test_slices_are_those_of_the_whole(kind):
    data = blocks(kind, 4, 2).copy()
    data[1:, :, 4:] ^= 0x35
    matrix = BlockMatrix(kind, data)
    whole = np.asarray(matrix)
    assert matrix.shape == whole.shape == (4, 64)
    assert len(matrix) == 4
    assert (matrix.size, matrix.dtype, matrix.ndim) == (256, np.float32, 2)
    for index in (slice(1, 3), (slice(2), slice(5, 40)), 2, -1):
        np.testing.assert_array_equal(matrix[index], whole[index])
    assert matrix.reshape(4, 64) is matrix
    assert matrix.reshape((2, 128)).shape == (2, 128)
    np.testing.assert_array_equal(matrix.astype(np.float16), whole.astype(np.float16))
