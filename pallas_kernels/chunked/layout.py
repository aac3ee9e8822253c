"""What the schedules of the chunked WKV-7 share: op inputs, residuals, and cutting time into chunks."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from pallas_kernels.chunked.math import ChunkInputs

MAX_CHUNK = 32

Tree = TypeVar("Tree")


class OpInputs(NamedTuple):
    """Inputs of the op without its state, as `wkv7` takes them."""

    r: Float[Array, "B T H K"]
    log_w: Float[Array, "B T H K"]
    k: Float[Array, "B T H K"]
    v: Float[Array, "B T H V"]
    a: Float[Array, "B T H K"]
    b: Float[Array, "B T H K"]
    reset: Bool[Array, "B T"] | None


class Saved(NamedTuple):
    """What the backward needs: `states` are those at the n chunk starts, `u` is S_{t-1} a_t.

    Both are empty (n = 0, T = 0) where s0 alone is differentiated, which needs neither. Another tree would say the
    same more plainly, but JAX keeps one residual structure per traced function, whatever is differentiated.
    """

    inputs: OpInputs
    states: Float[Array, "n B H V K"]
    u: Float[Array, "B T H V"]

    @property
    def for_state_only(self) -> bool:
        """Whether s0 alone is differentiated."""
        return self.states.shape[0] == 0


def varying(x: Array, axes: frozenset[str]) -> Array:
    """Returns x, under `shard_map` as something that differs along the mesh axes `axes` (too)."""
    missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
    return lax.pcast(x, missing, to="varying") if missing else x


def shape_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """Returns the type of what a kernel writes, differing along the same mesh axes as x."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def saved_for_state(x: OpInputs) -> Saved:
    """Returns the residuals of the gradient of s0 alone."""
    batch, _, heads, value = x.v.shape
    return Saved(x, jnp.zeros((0, batch, heads, value, x.r.shape[3])), jnp.zeros((batch, 0, heads, value)))


def chunk_size(length: int) -> int:
    """Returns the tokens per chunk: a power of two, MAX_CHUNK unless the whole sequence fits in less."""
    return min(MAX_CHUNK, 1 << (length - 1).bit_length())


def pad_time(tree: Tree, size: int) -> Tree:
    """Pads all [B, T, ...] with zeros up to a multiple of `size` tokens. A token of zeros leaves the state alone."""

    def pad(x: Array) -> Array:
        missing = -x.shape[1] % size
        return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x

    return jax.tree.map(pad, tree)


def split(x: Array, size: int) -> Float[Array, "B H n C N"]:
    """Cuts time into chunks: [B, n * C, H, N] of any float dtype -> float32 [B, H, n, C, N]."""
    batch, length, heads, width = x.shape
    return jnp.moveaxis(x.reshape(batch, length // size, size, heads, width), 3, 1).astype(jnp.float32)


def unsplit(x: Float[Array, "B H n C N"]) -> Float[Array, "B T H N"]:
    """Joins chunks: [B, H, n, C, N] -> [B, n * C, H, N]."""
    batch, heads, count, size, width = x.shape
    return jnp.moveaxis(x, 1, 3).reshape(batch, count * size, heads, width)


def split_inputs(x: OpInputs, size: int) -> ChunkInputs:
    """Cuts all inputs into chunks; their time must be a multiple of `size`."""
    reset = None if x.reset is None else x.reset.reshape(x.reset.shape[0], 1, -1, size, 1)
    r, log_w, k, v, a, b = (split(z, size) for z in x[:6])
    return ChunkInputs(r, log_w, k, v, a, b, reset)
