"""Laws of top-k and top-p over whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax.generation.thresholds import keep_top_k, keep_top_p

jitted_top_k, jitted_top_p = jax.jit(keep_top_k), jax.jit(keep_top_p)

PROBABILITIES = st.lists(st.integers(0, 6), min_size=1, max_size=30).filter(any).map(lambda w: np.array(w) / sum(w))


@settings(max_examples=60)
@given(probs=PROBABILITIES, top_k=st.integers(0, 32))
def test_top_k_keeps_exactly_k_ties_to_the_lowest_ids(probs, top_k):
    padded = np.pad(probs, (0, 32 - len(probs))).astype(np.float32)
    kept = np.asarray(jitted_top_k(padded[None], jnp.asarray(top_k, jnp.int32)))[0]
    expected = np.argsort(-padded, kind="stable")[: top_k or None]
    assert np.flatnonzero(kept).tolist() == sorted(expected.tolist())


@settings(max_examples=60)
@given(probs=PROBABILITIES, top_p=st.integers(0, 999).map(lambda n: n / 1000))
def test_top_p_keeps_the_fewest_that_reach_it_with_ties(probs, top_p):
    padded = np.pad(probs, (0, 32 - len(probs))).astype(np.float32)
    kept = np.asarray(jitted_top_p(padded[None], jnp.asarray(top_p, jnp.float32)))[0]
    least = padded[kept].min()
    np.testing.assert_array_equal(kept, padded >= least)
    rounding = 1e-6
    assert padded[kept].sum() >= top_p - rounding
    assert padded[padded > least].sum() < top_p + rounding or top_p == 0


def test_top_p_of_one_keeps_everything():
    probs = jnp.asarray([[0.6, 0.4 - 1e-7, 1e-7, 0.0]], jnp.float32)
    assert np.asarray(jitted_top_p(probs, jnp.asarray(1.0))).all()
    assert np.asarray(jitted_top_p(probs, jnp.asarray(0.0))).tolist() == [[True, False, False, False]]
