"""How R is learnt from C = E[x x^T]: pure functions on matrices [..., K, K], which know no optimiser.

The rule is that of decorrelated backpropagation, see `transform`; `inverse_root` is what it approaches.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["decorrelate", "inverse_root", "precondition"]


def decorrelate(
    r: Float[Array, "*L K K"], c: Float[Array, "*L K K"], rate: Float[Array, ""], kappa: Float[Array, ""]
) -> Float[Array, "*L K K"]:
    """Makes one step of the rule on R with both guards: the bracket is cut to norm 1, and R scaled to `tr C~ = K`.

    Args:
      r: R [..., K, K], float32; the identity at start.
      c: C = E[x x^T] [..., K, K], which must not be zero.
      rate: step size in [0, 1), a scalar.
      kappa: 0 decorrelates, 1 normalises variances, a scalar.

    Returns:
      R after the step [..., K, K]; R itself if the rate is 0.

    Example:
      >>> c = jnp.array([[1.0, 0.8], [0.8, 1.0]])
      >>> r = jnp.eye(2)
      >>> for _ in range(100):
      ...     r = decorrelate(r, c, jnp.float32(0.1), jnp.float32(0.5))
      >>> bool(jnp.allclose(precondition(r, c), jnp.eye(2), atol=1e-3))
      True
    """
    size = r.shape[-1]
    after = precondition(r, c)
    identity = identity_like(r)
    slope = jnp.where(identity > 0, kappa * (after - identity), (1 - kappa) * after)
    slope = slope / jnp.maximum(jnp.linalg.norm(slope, axis=(-2, -1), keepdims=True), 1.0)
    new = r - rate * product(slope, r)
    power = jnp.trace(precondition(new, c), axis1=-2, axis2=-1)[..., None, None]
    return jnp.where(rate == 0, r, new * jnp.sqrt(size / power))


def precondition(r: Float[Array, "*L K K"], c: Float[Array, "*L K K"]) -> Float[Array, "*L K K"]:
    """Computes C~ = R C R^T, the correlation of R x.

    Args:
      r: R [..., K, K].
      c: C = E[x x^T] [..., K, K].

    Returns:
      E[R x (R x)^T] [..., K, K].

    Example:
      >>> precondition(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
      [[4.0, 1.0], [1.0, 1.0]]
    """
    return product(product(r, c), jnp.swapaxes(r, -1, -2))


def inverse_root(c: Float[Array, "*L K K"]) -> Float[Array, "*L K K"]:
    """Computes C^(-1/2) of a symmetric C by eigendecomposition.

    Args:
      c: C [..., K, K], positive semidefinite.

    Returns:
      [..., K, K] of the same dtype; eigenvalues of C below the float's resolution of the largest are raised to it.

    Example:
      >>> bool(jnp.allclose(inverse_root(jnp.diag(jnp.array([4.0, 0.25]))), jnp.diag(jnp.array([0.5, 2.0]))))
      True
    """
    values, vectors = jnp.linalg.eigh(c)
    values = jnp.maximum(values, jnp.finfo(c.dtype).eps * values[..., -1:])
    scaled = vectors * jax.lax.rsqrt(values)[..., None, :]
    return product(scaled, jnp.swapaxes(vectors, -1, -2))


def product(x: Array, y: Array) -> Array:
    """Computes x y for every pair of matrices [..., I, J] and [..., J, K], in full precision."""
    return jnp.einsum("...ij,...jk->...ik", x, y, precision="highest")


def identity_like(x: Float[Array, "*L K K"]) -> Float[Array, "*L K K"]:
    """Returns identity matrices of the shape and dtype of x."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
