"""Rows with settings of their own choose and count what each would alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax.generation.row_sampling import RowFlags, choose_by_row, count_by_row
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays, SamplingFlags, SamplingParams, choose

SETTINGS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.3),
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.5),
    SamplingParams(temperature=1.3, top_k=3),
    SamplingParams(temperature=1.3, top_p=0.9999999, top_k=2**31 - 1, frequency_penalty=0.3),
    SamplingParams(top_p=0),
]
alone = jax.jit(choose, static_argnums=3)


@functools.partial(jax.jit, static_argnames="count")
def together(logits, keys, arrays, flags, wanted, occurrences, *, count):
    assert len(logits) == count
    return choose_by_row(logits, keys, arrays, flags, wanted, occurrences)


def stacked(settings):
    flags = RowFlags(*map(np.asarray, zip(*map(SamplingFlags.of, settings), strict=True)))
    return SamplingArrays(*map(np.stack, zip(*map(SamplingArrays.of, settings), strict=True))), flags


def occurrences(rng, rows, vocab):
    seen = rng.random((rows, vocab)) < 0.3
    return Occurrences(jnp.asarray(seen), jnp.asarray(seen * rng.random((rows, vocab)), jnp.float32))


@pytest.mark.parametrize("vocab", [40, 700], ids=["all likeliest", "more than the likeliest"])
def test_each_row_chooses_as_alone(vocab):
    """More rows than a CPU chooses for at a time."""
    rng, settings = np.random.default_rng(vocab), SETTINGS * 2
    (arrays, flags), rows = stacked(settings), len(settings)
    for scale, seed in itertools.product((0.1, 4), range(3)):
        logits = jnp.asarray(scale * rng.normal(size=(rows, vocab)), jnp.float32)
        keys, counts = jax.random.split(jax.random.key(seed), rows), occurrences(rng, rows, vocab)
        found = together(logits, keys, arrays, flags, jnp.ones(rows, jnp.bool_), counts, count=rows)
        for i, one in enumerate(settings):
            row = slice(i, i + 1)
            own = Occurrences(counts.seen[row], counts.count[row])
            expected = alone(logits[row], keys[row], SamplingArrays.of(one), SamplingFlags.of(one), own)
            assert found[i] == expected[0], (one, scale, seed)


def test_rows_that_are_not_wanted_change_nothing():
    rng = np.random.default_rng(0)
    arrays, flags = stacked(SETTINGS)
    logits = jnp.asarray(rng.normal(size=(len(SETTINGS), 700)), jnp.float32)
    keys, counts = jax.random.split(jax.random.key(1), len(SETTINGS)), occurrences(rng, len(SETTINGS), 700)
    every = together(logits, keys, arrays, flags, jnp.ones(7, jnp.bool_), counts, count=7)
    for i in range(7):
        wanted = jnp.arange(7) == i
        nan = jnp.where(wanted[:, None], logits, jnp.nan)
        assert together(nan, keys, arrays, flags, wanted, counts, count=7)[i] == every[i]


def test_wanted_rows_alone_are_counted():
    rng = np.random.default_rng(0)
    arrays, _ = stacked(SETTINGS[:3])
    before, tokens, weight = occurrences(rng, 3, 40), jnp.asarray([1, 2, 3], jnp.int32), np.ones(40, np.float32)
    all_rows = before.add(tokens, jnp.asarray(weight), arrays.decay)
    after = count_by_row(before, tokens, weight, arrays, jnp.asarray([True, False, False]))
    for leaf, old, new in zip(after, before, all_rows, strict=True):
        np.testing.assert_array_equal(leaf[0], new[0])
        np.testing.assert_array_equal(np.asarray(leaf[1]).astype(bool), np.asarray(old[1]).astype(bool))
    untouched = count_by_row(before, tokens, weight, arrays, jnp.zeros(3, jnp.bool_))
    assert all(jnp.array_equal(a, b) for a, b in zip(untouched, before, strict=True))
