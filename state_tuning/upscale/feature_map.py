"""Where a Gaussian feature map has its supports, and how wide it is: k-means or random, and the median heuristic.

Points are calibration vectors [*, N, K]: the leading axes (layer, head) each get a map of their own.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

__all__ = ["Kernel", "fit", "kmeans"]


class Kernel(NamedTuple):
    """`psi(x)_m = exp(-gamma |x - u_m|^2)`, see `rwkv7_jax.wkv_state.gaussian`.

    Example:
      >>> from rwkv7_jax.wkv_state import gaussian
      >>> kernel = Kernel(jnp.zeros((1, 1, 2)), jnp.array([0.5]))  # of one head, with one support at the origin
      >>> points = jnp.ones((1, 1, 1, 2))  # [B, T, H, K]
      >>> round(float(gaussian(points, kernel.supports[None], kernel.gamma[None]).sum()), 4)  # exp(-1)
      0.3679
    """

    supports: Float[Array, "*L M K"]
    """u_m, float32."""
    gamma: Float[Array, "*L"]
    """1 / (2 width^2), in units of the points' squared distance."""


def fit(
    points: Float[Array, "*L N K"],
    size: int,
    key: Key[Array, ""],
    supports: Literal["kmeans", "random"] = "kmeans",
    bandwidth: float = 1.0,
    iterations: int = 10,
) -> Kernel:
    """Fits a kernel over `size` supports for every leading index, from its own points.

    `gamma = 1 / (2 bandwidth^2 median(|x - u|^2))` over all pairs of a point and a support.

    Args:
      points: calibration vectors [*, N, K].
      size: M, the number of supports.
      key: of the random choice of supports.
      supports: centres of k-means, or random points.
      bandwidth: width of the Gaussians in units of the median distance.
      iterations: rounds of k-means.

    Returns:
      The kernel.

    Raises:
      ValueError: there are fewer points than supports.

    Example:
      >>> points = jax.random.normal(jax.random.key(0), (2, 64, 3))  # of two heads
      >>> kernel = fit(points, 8, jax.random.key(1))
      >>> kernel.supports.shape, kernel.gamma.shape
      ((2, 8, 3), (2,))
    """
    count, width = points.shape[-2:]
    if size > count:
        raise ValueError(f"{size} supports need as many calibration tokens, there are {count}: give more text")
    flat = points.astype(jnp.float32).reshape(-1, count, width)
    rounds = iterations if supports == "kmeans" else 0
    kernel = _fit_all(flat, jax.random.split(key, flat.shape[0]), size, rounds, bandwidth)
    return jax.tree.map(lambda x: x.reshape(*points.shape[:-2], *x.shape[1:]), kernel)


def kmeans(points: Float[Array, "N K"], centres: Float[Array, "M K"], iterations: int) -> Float[Array, "M K"]:
    """Runs Lloyd's algorithm; a centre that no point is nearest to stays. The mean squared distance never rises.

    Args:
      points: N points, float32.
      centres: M centres to start from.
      iterations: rounds.

    Returns:
      The centres [M, K] after the last round.

    Example:
      >>> kmeans(jnp.array([[0.0], [2.0], [10.0]]), jnp.array([[0.0], [9.0]]), iterations=2).tolist()
      [[1.0], [10.0]]
    """

    def step(centres: Array, _: None) -> tuple[Array, None]:
        member = jax.nn.one_hot(jnp.argmin(squared_distances(points, centres), axis=1), centres.shape[0])
        count = member.sum(0)[:, None]
        mean = jnp.einsum("nm,nk->mk", member, points, precision="highest") / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, mean, centres), None

    return jax.lax.scan(step, centres, None, length=iterations)[0]


def squared_distances(x: Float[Array, "N K"], u: Float[Array, "M K"]) -> Float[Array, "N M"]:
    """Returns |x_n - u_m|^2."""
    inner = jnp.einsum("nk,mk->nm", x, u, precision="highest")
    return jnp.maximum(jnp.sum(x * x, -1)[:, None] + jnp.sum(u * u, -1)[None] - 2 * inner, 0.0)


@partial(jax.jit, static_argnums=(2, 3))
def _fit_all(
    points: Float[Array, "L N K"], keys: Key[Array, "L"], size: int, iterations: int, bandwidth: ArrayLike
) -> Kernel:
    def one(args: tuple[Array, Array]) -> Kernel:
        x, key = args
        centres = jax.random.choice(key, x, (size,), replace=False)
        centres = kmeans(x, centres, iterations)
        median = jnp.median(squared_distances(x, centres))
        return Kernel(centres, 1.0 / jnp.maximum(2.0 * bandwidth**2 * median, 1e-12))

    return jax.lax.map(one, (points, keys))
