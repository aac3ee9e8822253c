"""`wkv7` over rows longer than one device: time is cut along a mesh axis, each device holds one chunk of every row.

From the state before a chunk to the state after it the recurrence is affine, S_out = S_in D + N: the *transition* D
[K, K] depends on log_w, a, b and resets alone, and N is the state after the chunk from the zero state. All devices
compute D and N at the same time, the states at the boundaries follow by small products (`carried`), and then every
device runs the plain op from its own. Backward the same map runs transposed, dS_in = dS_out D' + N', where N' comes
from the op's backward of s0 alone; then the op's own backward runs with the right dS_out. What the gradient of s0 needs
of this reads neither k nor v nor any state.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from pallas_kernels.chunked.layout import varying
from pallas_kernels.op import wkv7

Flags = dict[str, Array | None]
"""`valid` and `reset`, as `wkv7` takes them."""
Settings = tuple[tuple[str, str | float], ...]
"""Its other options, by name."""

BOUNDARY = "wkv7_boundary"
"""Name, for policies of `jax.checkpoint`, of what is worth keeping: two states a device, which cost two passes and what
is sent."""
MOST_CHAINED = 32
"""Devices up to which states go from one to the next; more compose their maps by doubling."""


def wkv7_sequence_parallel(
    r: ArrayLike,
    log_w: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    s0: ArrayLike,
    *,
    axis_name: str,
    valid: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    min_log_w: float | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Computes `wkv7` inside `jax.shard_map`, time being cut into equal chunks along a mesh axis.

    Costs three passes of the op forward (its own, and two for the chunk's map) and, besides its own backward, the one
    of s0 alone; see `carried` for what is sent. Differentiable once, in reverse mode.

    Args:
      r, log_w, k, v, a, b: this device's chunk of each row [B, T / devices, H, K or V], as in `wkv7`.
      s0: state before the first token of the rows [B, H, V, K], float32, the same on all devices of the axis.
      axis_name: the mesh axis; its first device holds the first chunk.
      valid: bool [B, T / devices]; False marks padding, whole chunks of it too.
      reset: bool [B, T / devices]; True makes the state zero before that token.
      min_log_w, implementation: as in `wkv7`, which computes each chunk; None: its defaults.

    Returns:
      (y, s_T): this device's outputs [B, T / devices, H, V], and the state after the last token of the rows
      [B, H, V, K], float32, the same on all devices of the axis.

    Raises:
      ValueError: a shape or dtype that does not fit, or an unknown implementation.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("time",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
      >>> op = partial(wkv7_sequence_parallel, axis_name="time")
      >>> cut = jax.shard_map(op, mesh=mesh, in_specs=(P(None, "time"),) * 6 + (P(),), out_specs=(P(None, "time"), P()))
      >>> x = jnp.full((1, 2, 1, 2), 0.1)
      >>> y, s = jax.jit(cut)(x, -x, x, x, -x, x, jnp.zeros((1, 1, 2, 2)))
      >>> y.shape, s.shape
      ((1, 2, 1, 2), (1, 1, 2, 2))
    """
    arrays = [jnp.asarray(x) for x in (r, log_w, k, v, a, b, s0)]
    axes = frozenset({axis_name}).union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
    *vectors, state = (varying(x, axes) for x in arrays)
    flags = {name: None if x is None else jnp.asarray(x) for name, x in (("valid", valid), ("reset", reset))}
    settings = (("min_log_w", min_log_w), ("implementation", implementation))
    chosen = tuple((name, value) for name, value in settings if value is not None)
    op, place = _chunk_op(chosen, flags), lax.axis_index(axis_name)

    fixed, start = lax.stop_gradient((vectors, state))
    transition = _transition(op, *fixed)
    before = carried(transition, op(*fixed, jnp.zeros_like(start))[1], start, axis_name)
    transition, before = checkpoint_name((transition, before), BOUNDARY)
    outputs = op(*vectors, jnp.where(place == 0, state, before))
    y, s = cast(tuple[Array, Array], _with_later_chunks(axis_name, chosen, (tuple(fixed), transition, flags), outputs))
    last = place == lax.axis_size(axis_name) - 1
    return y, lax.psum(jnp.where(last, s, jnp.zeros_like(s)), axis_name)


def carried(transition: Array, own: Array, first: Array, axis_name: str, *, reverse: bool = False) -> Array:
    """Returns x before each device's chunk, where x is `first` before the first chunk and x `transition` + `own` after.

    Up to `MOST_CHAINED` devices x itself goes from device to device: one state over each boundary, devices - 1 sends
    one after another. Beyond, maps are composed by doubling: log2(devices) sends of two states each, all devices at
    once.

    Args:
      transition: of this device's chunk [B, H, K, K].
      own: what its chunk adds [B, H, V, K].
      first: x before the first chunk [B, H, V, K]; only the first device's counts.
      axis_name: the mesh axis.
      reverse: count from the last device to the first.

    Returns:
      x [B, H, V, K], which differs from device to device.
    """
    count, place = lax.axis_size(axis_name), lax.axis_index(axis_name)
    place = count - 1 - place if reverse else place

    def send(x: tuple[Array, ...], start: int, stop: int, step: int) -> tuple[Array, ...]:
        """Sends from the places start ... stop - 1 to those `step` further; zeros arrive where nothing is sent."""
        pairs = [(i, i + step) for i in range(start, stop)]
        pairs = [(count - 1 - i, count - 1 - j) for i, j in pairs] if reverse else pairs
        return lax.ppermute(x, axis_name, pairs)

    if count <= MOST_CHAINED:
        x = first
        for i in range(count - 1):
            (arrived,) = send((_mm(x, transition) + own,), i, i + 1, 1)
            x = jnp.where(place == i + 1, arrived, x)
        return x
    # The first device's map becomes constant, so that what has reached it is complete: its transition is zero, and the
    # zeros that arrive change nothing.
    own = jnp.where(place == 0, _mm(first, transition) + own, own)
    transition = jnp.where(place == 0, jnp.zeros_like(transition), transition)
    step = 1
    while step < count:
        if 2 * step < count:
            before, earlier = send((own, transition), 0, count - step, step)
            own, transition = _mm(before, transition) + own, _mm(earlier, transition)
        else:
            own = _mm(*send((own,), 0, count - step, step), transition) + own
        step *= 2
    (arrived,) = send((own,), 0, count - 1, 1)
    return jnp.where(place == 0, first, arrived)


def _mm(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


Chunk = tuple[tuple[Array, ...], Array, Flags]
"""The vectors of a chunk, its transition, and its flags."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_later_chunks(
    axis_name: str, settings: Settings, chunk: Chunk, outputs: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns the outputs of a chunk, y and the state after it, unchanged.

    Backward, the gradient of that state gets what all later chunks make of it, so that the op's own backward needs no
    other device.
    """
    return outputs


def _forward(
    axis_name: str, settings: Settings, chunk: Chunk, outputs: tuple[Array, Array]
) -> tuple[tuple[Array, Array], Chunk]:
    return outputs, chunk


def _backward(
    axis_name: str, settings: Settings, chunk: Chunk, cotangents: tuple[Array, Array]
) -> tuple[None, tuple[Array, Array]]:
    (vectors, transition, flags), (dy, ds) = chunk, cotangents
    op = _chunk_op(settings, flags)
    # y is affine in the state: where it is differentiated does not matter.
    own = jax.vjp(lambda s: op(*vectors, s), jnp.zeros_like(ds))[1]((dy, ds))[0]
    after = carried(jnp.swapaxes(transition, -1, -2), own, jnp.zeros_like(ds), axis_name, reverse=True)
    return None, (dy, ds + after)


_with_later_chunks.defvjp(_forward, _backward)


def _chunk_op(settings: Settings, flags: Flags) -> Callable[..., tuple[Array, Array]]:
    """The op on this device's chunk."""
    return partial(wkv7, **flags, **dict(settings))


def _transition(
    op: Callable[..., tuple[Array, Array]], r: Array, log_w: Array, k: Array, v: Array, a: Array, b: Array
) -> Array:
    """D [B, H, K, K]: the state after the chunk from the identity, if nothing is written to it."""
    batch, _, heads, size = r.shape
    identity = jnp.broadcast_to(jnp.eye(size)[None, None], (batch, heads, size, size))
    nothing = jnp.zeros(r.shape, v.dtype)  # of v's dtype, which may decide about the precision of the products
    return op(jnp.zeros_like(r), log_w, jnp.zeros_like(k), nothing, a, b, identity)[1]
