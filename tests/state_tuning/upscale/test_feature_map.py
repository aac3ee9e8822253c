"""Supports, bandwidth and the stability criterion of feature maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_tuning.upscale import feature_map, stability


def test_k_means_finds_separated_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    points = jnp.asarray((centres[:, None] + 0.1 * rng.normal(size=(3, 20, 2))).reshape(-1, 2), jnp.float32)
    found = feature_map.kmeans(points, points[jnp.asarray([0, 20, 40])], 5)
    expected = points.reshape(3, 20, 2).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_more_rounds_never_raise_the_distance_and_an_empty_cluster_stays():
    points = jax.random.normal(jax.random.key(1), (40, 3))
    start = jnp.concatenate([points[:4], jnp.full((1, 3), 50.0)])
    cost = [
        float(feature_map.squared_distances(points, feature_map.kmeans(points, start, n)).min(1).mean())
        for n in (0, 1, 3, 8)
    ]
    assert cost == sorted(cost, reverse=True)
    assert cost[0] > cost[-1]
    np.testing.assert_array_equal(feature_map.kmeans(points, start, 3)[4], start[4])


def test_gamma_is_the_median_heuristic_of_each_head():
    points = jax.random.normal(jax.random.key(2), (2, 2, 30, 3)) * jnp.asarray([1.0, 5.0])[None, :, None, None]
    kernel = feature_map.fit(points, 6, jax.random.key(3), supports="random", bandwidth=2.0)
    assert kernel.supports.shape == (2, 2, 6, 3)
    for index in np.ndindex(2, 2):
        x, u = np.asarray(points)[index], np.asarray(kernel.supports)[index]
        assert {tuple(row) for row in u} <= {tuple(row) for row in x}
        median = np.median(np.square(x[:, None] - u[None]).sum(-1))
        np.testing.assert_allclose(kernel.gamma[index], 1 / (2 * 4 * median), rtol=1e-5)


def test_too_few_tokens_are_one_line():
    with pytest.raises(ValueError, match="9 supports need as many calibration tokens, there are 8"):
        feature_map.fit(jnp.zeros((1, 8, 2)), 9, jax.random.key(0))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.3, 3.0))
def test_the_criterion_decides_whether_an_eigenvalue_leaves_the_unit_interval(seed, length):
    rng = np.random.default_rng(seed)
    w, a, k = rng.uniform(0.01, 1, 5), rng.uniform(0, 1, 5), rng.normal(size=5)
    k *= length / np.linalg.norm(k)
    value = np.sum(a * k**2 / (1 + w))
    eigenvalues = np.linalg.eigvals(np.diag(w) - np.outer(k, a * k))
    np.testing.assert_allclose(eigenvalues.imag, 0, atol=1e-7)
    if abs(value - 1) > 1e-6:
        assert (np.abs(eigenvalues).max() <= 1 + 1e-9) == (value < 1)


def test_the_report_and_the_refusal_name_the_worst_head():
    values = np.array([[0.2, 0.5], [1.75, 0.3]])
    assert "layer 1: 1.750 (head 0)" in stability.summary(values)
    with pytest.raises(ValueError, match=r"x: unstable in layer 1, head 0: .* is 1\.75, .*1 of 4 heads"):
        stability.require(values, "x")
    stability.require(values[:1], "x")
    with pytest.raises(ValueError, match="layer 0, head 1"):
        stability.require(np.array([[0.2, np.nan]]), "x")
