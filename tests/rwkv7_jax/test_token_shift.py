"""Token shift over a row that is cut over devices: padding, resets, and chunks that hold nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import sharding
from rwkv7_jax.token_shift import shifted, token_shift

ROWS, TIME, WIDTH = 4, 24, 3


def marks(rng):
    """Sparse tokens, so that most chunks of three hold none; a reset before, in and after such chunks."""
    valid, reset = rng.random((ROWS, TIME)) < 0.15, rng.random((ROWS, TIME)) < 0.05
    valid[0], valid[1, 4], valid[1, 5:20], reset[1, 13] = False, True, False, True
    return jnp.asarray(valid), jnp.asarray(reset)


def both(function, x, last, *flags):
    def total(x, last):
        before, end = function(x, last, *flags)
        if flags[0] is not None:  # what padding gets means nothing and carries no gradient
            before = jnp.where(flags[0][..., None], before, jnp.zeros_like(before))
        return jnp.sum(jnp.sin(before)) + jnp.sum(jnp.cos(end)), (before, end)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, last)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 1, 2, 2)])
@pytest.mark.parametrize(("padding", "resets"), [(True, True), (True, False), (False, True), (False, False)])
def test_cut_rows_give_the_numbers_of_whole_ones(shape, padding, resets):
    rng = np.random.default_rng(1)
    x, last = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((ROWS, TIME, WIDTH), (ROWS, WIDTH)))
    valid, reset = marks(rng)
    flags = (valid if padding else None, reset if resets else None)
    with jax.set_mesh(sharding.make_mesh(*shape)):
        found = both(token_shift, x, last, *flags)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(both(shifted, x, last, *flags)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
