"""Memories: what may stand in the place of a state's `wkv` matrix, each with its own way to be written and read.

A plain array S [L,*B,H,V,K] follows the released rule. The others keep it as their field `s` beside further arrays, all
[L,*B,...]: they are pytrees that are scanned over layers, broadcast over rows and carried from token to token like it.

Kernel features `psi(x)_m = exp(-gamma |x - u_m|^2)` over supports u_1..u_M lift a head's vectors to a larger space.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rwkv7_jax.sharding import wkv7_by_rows_and_heads


class Streams(NamedTuple):
    """What a head writes and reads with; `kk` is the removal key of unit length, `iclr` its in-context rate."""

    r: Float[Array, "B T H K"]
    log_w: Float[Array, "B T H K"]
    k: Float[Array, "B T H K"]
    v: Float[Array, "B T H V"]
    kk: Float[Array, "B T H K"]
    iclr: Float[Array, "B T H K"]


class WKV(NamedTuple):
    """The WKV op for one batch of tokens (see `pallas_kernels.wkv7`)."""

    valid: Bool[Array, "B T"] | None = None
    reset: Bool[Array, "B T"] | None = None
    implementation: str | None = None

    def __call__(
        self, x: Streams, s: Float[Array, "B H V K"]
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V K"]]:
        """Outputs, and the state after the last token."""
        r, log_w, k, v, kk, iclr = x
        return wkv7_by_rows_and_heads(r, log_w, k, v, -kk, kk * iclr, s, **self._asdict())


@runtime_checkable
class Memory(Protocol):
    """One layer's memory. Calls see no layer axis; a trained matrix of it stands in `queries` by its input vector."""

    s: Any

    def attend(self, x: Streams, op: WKV) -> tuple[Array, Any]:
        """(y [B,T,H,V], the memory after the last token)."""
        ...

    def lifted(self, x: Streams) -> Streams:
        """The streams as they enter the recurrence that this memory adds or changes."""
        ...

    def queries(self, x: Streams, query: Any) -> Any:
        """This type with every matrix X of the initial memory replaced by the z_t [B,T,H,K] of its part `X z_t` of y.

        query: Streams -> q with `y_t = y_t^0 + S_0 q_t` (the identity probe).
        """
        ...


def attend(memory: Any, x: Streams, op: WKV) -> tuple[Array, Any]:
    """(y, memory after the last token), of a plain matrix or any other memory."""
    return memory.attend(x, op) if isinstance(memory, Memory) else op(x, memory)


class Residual(NamedTuple):
    """Kernel features on the read side only: `y_t = y_t^0 + S_0 q_t + S_ext psi(r_t)`.

    S_ext is never written and does not fade; a reset makes it zero. With S_ext = 0 it is the plain memory bit for bit.
    """

    s: Float[Array, "*L B H V K"]
    s_ext: Float[Array, "*L B H V F"]
    supports: Float[Array, "*L B H F K"]
    gamma: Float[Array, "*L B H"]

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Residual"]:
        y, s = op(x, self.s)
        y, s_ext = _read_beside(y, self.features(x), self.s_ext, op.reset)
        return y, self._replace(s=s, s_ext=s_ext)

    def features(self, x: Streams) -> Float[Array, "B T H F"]:
        return gaussian(x.r, self.supports, self.gamma)

    def lifted(self, x: Streams) -> Streams:
        return x

    def queries(self, x: Streams, query: Any) -> Any:
        return Residual(query(x), self.features(x), None, None)  # pyright: ignore[reportArgumentType]


class Offset(NamedTuple):
    """State-offset tuning (arXiv 2503.03499): `y_t = (S_t + O) r_t`; O is not written and does not fade.

    A reset makes it zero. With O = 0 it is the plain memory bit for bit.
    """

    s: Float[Array, "*L B H V K"]
    offset: Float[Array, "*L B H V K"]

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Offset"]:
        y, s = op(x, self.s)
        y, offset = _read_beside(y, x.r.astype(jnp.float32), self.offset, op.reset)
        return y, Offset(s, offset)

    def lifted(self, x: Streams) -> Streams:
        return x

    def queries(self, x: Streams, query: Any) -> Any:
        return Offset(query(x), x.r)


def _read_beside(
    y: Float[Array, "B T H V"], query: Float[Array, "B T H F"], matrix: Float[Array, "B H V F"], reset: Array | None
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V F"]]:
    """(y + matrix query, the matrix after the last token): it is only read, until a reset makes it zero."""
    read = jnp.einsum("bthf,bhvf->bthv", query, matrix)
    if reset is None:
        return y + read.astype(y.dtype), matrix
    alive = jnp.cumsum(reset, axis=1, dtype=jnp.int32) == 0
    read = jnp.where(alive[:, :, None, None], read, jnp.zeros_like(read))
    return y + read.astype(y.dtype), jnp.where(alive[:, -1, None, None, None], matrix, jnp.zeros_like(matrix))


class Recurrent(NamedTuple):
    """A second recurrence over M lifted key dimensions: `y = y_plain + gate * y_lifted`, the gate zero at start.

    With `unit(x)` the kernel features of x / |x|, centred and of length one: r' = |r| unit(r), k' = |k| unit(k),
    kk' = unit(kk), w' = P w and iclr' = P iclr, P_mi = u_mi^2 / |u_m|^2. P is row-stochastic, so decays and rates keep
    their range, and kk' has unit length: the recurrence is as stable as the released one.
    """

    s: Float[Array, "*L B H V K"]
    s_ext: Float[Array, "*L B H V M"]
    gate: Float[Array, "*L B H"]
    supports: Float[Array, "*L B H M K"]
    gamma: Float[Array, "*L B H"]
    centre: Float[Array, "*L B H M"]

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Recurrent"]:
        y, s = op(x, self.s)
        lifted, s_ext = op(self.lifted(x), self.s_ext)
        gated = self.gate[:, None, :, None] * lifted.astype(jnp.float32)
        return y + gated.astype(y.dtype), self._replace(s=s, s_ext=s_ext)

    def lifted(self, x: Streams) -> Streams:
        square = jnp.square(self.supports)
        mix = square / jnp.sum(square, axis=-1, keepdims=True)
        gamma = self.gamma[:, None, :, None]
        constant = gamma * (1 + jnp.sum(square, axis=-1)[:, None])

        def unit(z):
            exponent = 2 * gamma * _by_head(_normal(z), self.supports) - constant
            return _normal(jnp.exp(exponent) - self.centre[:, None])

        log_w = jnp.log(_by_head(jnp.exp(x.log_w), mix))
        r, k = _length(x.r) * unit(x.r), _length(x.k) * unit(x.k)
        return Streams(r, log_w, k, x.v, unit(x.kk), _by_head(x.iclr, mix))

    def queries(self, x: Streams, query: Any) -> Any:
        none: Any = None
        return Recurrent(query(x), query(self.lifted(x)), none, none, none, none)


class Literal(NamedTuple):
    """The formula word for word: phi on w, k, kk, iclr, v and r, a state S [M, M], `y = Q S phi(r)`.

    The pre-trained `s` is carried along unused. phi(w) is a similarity in (0, 1], not a decay: check stability first.
    supports: one set for each of r, w, k, kk, iclr, v, in this order.
    """

    s: Float[Array, "*L B H V K"]
    s_ext: Float[Array, "*L B H M M"]
    supports: Float[Array, "*L B H 6 M K"]
    gamma: Float[Array, "*L B H 6"]
    out: Float[Array, "*L B H V M"]

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Literal"]:
        y, s_ext = op._replace(implementation="scan")(self.lifted(x), self.s_ext)
        return jnp.einsum("bthm,bhvm->bthv", y, self.out).astype(x.v.dtype), self._replace(s_ext=s_ext)

    def lifted(self, x: Streams) -> Streams:
        streams = (x.r, jnp.exp(x.log_w), x.k, x.kk, x.iclr, x.v)
        r, log_w, k, kk, iclr, v = (
            log_gaussian(z, self.supports[:, :, i], self.gamma[:, :, i]) for i, z in enumerate(streams)
        )
        return Streams(jnp.exp(r), log_w, jnp.exp(k), jnp.exp(v), jnp.exp(kk), jnp.exp(iclr))

    def queries(self, x: Streams, query: Any) -> Any:
        none: Any = None
        return Literal(none, query(self.lifted(x)), none, none, none)


MAP = ("supports", "gamma", "centre", "out")
"""Fields of a memory that say what its map is; the others are matrices, and a gate, that can be trained and mixed."""
MEMORIES: dict[str, type] = {"residual": Residual, "offset": Offset, "recurrent": Recurrent, "literal": Literal}


def log_gaussian(
    x: Float[Array, "B T H K"], supports: Float[Array, "B H M K"], gamma: Float[Array, "B H"]
) -> Float[Array, "B T H M"]:
    """-gamma |x - u_m|^2 for every support, float32."""
    x = x.astype(jnp.float32)
    inner = _by_head(x, supports)
    squares = jnp.sum(jnp.square(x), -1, keepdims=True) + jnp.sum(jnp.square(supports), -1)[:, None]
    return -gamma[:, None, :, None] * jnp.maximum(squares - 2 * inner, 0)


def gaussian(
    x: Float[Array, "B T H K"], supports: Float[Array, "B H M K"], gamma: Float[Array, "B H"]
) -> Float[Array, "B T H M"]:
    """The kernel features psi(x), in (0, 1], float32."""
    return jnp.exp(log_gaussian(x, supports, gamma))


def _by_head(x: Float[Array, "B T H K"], matrix: Float[Array, "B H M K"]) -> Float[Array, "B T H M"]:
    """Every head's own matrix applied to every token, float32; heads before tokens are twice as fast on CPU."""
    x = jnp.moveaxis(x.astype(jnp.float32), 1, 2)
    return jnp.moveaxis(jnp.einsum("bhtk,bhmk->bhtm", x, matrix, precision="highest"), 1, 2)


def _length(x: Float[Array, "*B K"]) -> Float[Array, "*B 1"]:
    """|x| in float32; its gradient at zero is finite."""
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True), 1e-24))


def _normal(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    return x.astype(jnp.float32) / _length(x)
