"""Whether the recurrence of a lifted state is a contraction, measured per layer and head before tuning.

The transition `diag(w) - kk (iclr * kk)^T` is similar to a symmetric matrix `diag(w) - z z^T` with z_i = sqrt(iclr_i)
kk_i. For w in (0, 1] its eigenvalues are real and at most 1, and by the matrix determinant lemma all lie above -1
exactly while

    sum_i iclr_i kk_i^2 / (1 + w_i) < 1.

In the released model |kk| = 1 and w > 0.5453 keep the sum below 0.65. Gaussian features of kk have a length that grows
with their number, so the literal lift breaks it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rwkv7_jax.wkv_state import Streams

__all__ = ["require", "summary", "worst"]

LIMIT = 1.0


def criterion(x: Streams) -> Float[Array, "*B T H"]:
    """Returns the sum above for every token and head; below `LIMIT` the transition is a contraction."""
    kk, iclr, w = x.kk.astype(jnp.float32), x.iclr.astype(jnp.float32), jnp.exp(x.log_w.astype(jnp.float32))
    return jnp.sum(iclr * jnp.square(kk) / (1 + w), axis=-1)


def worst(wkv: PyTree, streams: Streams) -> Float[np.ndarray, "L H"]:
    """Returns the largest criterion over calibration tokens, per layer and head.

    Args:
      wkv: an unbatched lifted state, see `rwkv7_jax.wkv_state`.
      streams: [L, N, H, *] of N tokens.

    Returns:
      float32 [L, H] on the host; the recurrence is a contraction on these tokens where it is below `LIMIT`.
    """

    def layer(args: tuple[PyTree, Streams]) -> Float[Array, "H"]:
        wkv, x = jax.tree.map(lambda leaf: leaf[None], args)
        return criterion(wkv.lifted(x)).max((0, 1))

    return np.asarray(jax.lax.map(layer, (wkv, streams)))


def summary(values: Float[np.ndarray, "L H"]) -> str:
    """Writes one line a layer: the largest value and its head.

    Args:
      values: of `worst`.

    Returns:
      The text.

    Example:
      >>> print(summary(np.array([[0.3, 0.625], [0.5, 0.4]])))
      stability, largest sum of iclr kk^2 / (1 + w), a contraction below 1:
        layer 0: 0.625 (head 1)
        layer 1: 0.500 (head 0)
    """
    heads = values.argmax(1)
    lines = [
        f"  layer {i}: {row[head]:.3f} (head {head})" for i, (row, head) in enumerate(zip(values, heads, strict=True))
    ]
    return "\n".join([f"stability, largest sum of iclr kk^2 / (1 + w), a contraction below {LIMIT:g}:", *lines])


def require(values: Float[np.ndarray, "L H"], what: str) -> None:
    """Checks that every value is below `LIMIT`.

    Args:
      values: of `worst`.
      what: beginning of the message.

    Raises:
      ValueError: one line that names layer, head and value.

    Example:
      >>> require(np.array([[0.3, 0.6]]), "my map")
      >>> require(np.array([[0.3, 2.0]]), "my map")
      Traceback (most recent call last):
      ValueError: my map: unstable in layer 0, head 1: sum iclr kk^2 / (1 + w) is 2, must be below 1 ...
    """
    if (values < LIMIT).all():
        return
    layer, head = np.unravel_index(int(np.argmax(np.nan_to_num(values, nan=np.inf))), values.shape)
    count = int((~(values < LIMIT)).sum())
    raise ValueError(
        f"{what}: unstable in layer {layer}, head {head}: sum iclr kk^2 / (1 + w) is {values[layer, head]:.3g}, must "
        f"be below {LIMIT:g} (violated in {count} of {values.size} heads); use the residual map, or allow_unstable"
    )
