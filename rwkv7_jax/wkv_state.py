"""WKV states other than the plain matrix: each has its own rule to be written and read.

A plain array S `[L,*B,H,V,K]` follows the released rule. A `WKVState` keeps it as its field `s` beside further arrays,
all `[L,*B,...]`: it is a pytree, scanned over layers, broadcast over rows and carried from token to token like S.

Kernel features `psi(x)_m = exp(-gamma |x - u_m|^2)` over supports u_1..u_M lift a head's vectors to a larger space.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rwkv7_jax.sharding import wkv7_on_mesh

__all__ = [
    "WKV", "WKV_STATES", "Literal", "Offset", "Query", "Recurrent", "Residual", "Streams", "WKVState", "attend",
    "gaussian",
]  # fmt: skip


class Streams(NamedTuple):
    """The inputs of the recurrence by head, as a layer's time mix computes them."""

    r: Float[Array, "B T H K"]
    """Receptance: what the state is read with."""
    log_w: Float[Array, "B T H K"]
    """Natural logarithm of the decay."""
    k: Float[Array, "B T H K"]
    """Keys."""
    v: Float[Array, "B T H V"]
    """Values."""
    kk: Float[Array, "B T H K"]
    """The removal key, of unit length."""
    iclr: Float[Array, "B T H K"]
    """The in-context learning rate of the removal, 0..1."""


class WKV(NamedTuple):
    """The WKV op for one batch of tokens, see `pallas_kernels.wkv7`."""

    valid: Bool[Array, "B T"] | None = None
    """False marks padding; None: there is none."""
    reset: Bool[Array, "B T"] | None = None
    """True makes the state zero before that token; None: nowhere."""
    implementation: str | None = None
    """A key of `pallas_kernels.IMPLEMENTATIONS`; None picks by device."""

    def __call__(
        self, x: Streams, s: Float[Array, "B H V K"]
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V K"]]:
        """Computes the recurrence.

        Args:
          x: its inputs.
          s: state before the first token.

        Returns:
          (outputs [B, T, H, V] in the dtype of v, state after the last token, float32).
        """
        r, log_w, k, v, kk, iclr = x
        return wkv7_on_mesh(r, log_w, k, v, -kk, kk * iclr, s, **self._asdict())


Query = Callable[[Streams], Array]
"""Streams -> q [B,T,H,K] with `y_t = y_t^0 + S_0 q_t`."""


@runtime_checkable
class WKVState(Protocol):
    """One layer's state of the recurrence; methods see no layer axis."""

    @property
    def s(self) -> Array:
        """The plain matrix S."""
        ...

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "WKVState"]:
        """Returns (y [B,T,H,V], the state after the last token)."""
        ...

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs of the recurrence that this state adds or changes."""
        ...

    def queries(self, x: Streams, query: Query) -> "WKVState":
        """Returns this type with every matrix X of the initial state replaced by the z_t of its part `X z_t` of y.

        z_t is [B,T,H,K]; `query` computes that of the plain recurrence.
        """
        ...


AnyWKVState = ArrayLike | WKVState
"""A plain matrix, or a `WKVState`."""


def attend(wkv: Array | WKVState, x: Streams, op: WKV) -> tuple[Array, Array | WKVState]:
    """Computes the recurrence from a plain matrix or any `WKVState`.

    Args:
      wkv: one layer's state before the first token.
      x: inputs of the recurrence.
      op: the WKV op for these tokens.

    Returns:
      (y [B, T, H, V], the state after the last token, of the type of `wkv`).
    """
    return wkv.attend(x, op) if isinstance(wkv, WKVState) else op(x, wkv)


class Residual(NamedTuple):
    """Kernel features on the read side only: `y_t = y_t^0 + S_0 q_t + S_ext psi(r_t)`.

    S_ext is never written and does not fade; a reset makes it zero. With S_ext = 0 it is the plain state bit for bit.
    """

    s: Float[Array, "*L B H V K"]
    """The plain matrix S."""
    s_ext: Float[Array, "*L B H V F"]
    """S_ext, which reads the features."""
    supports: Float[Array, "*L B H F K"]
    """The supports u_1 .. u_F."""
    gamma: Float[Array, "*L B H"]
    """The kernel's gamma."""

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Residual"]:
        """Reads S and S_ext; writes S."""
        y, s = op(x, self.s)
        y, s_ext = _read_beside(y, self.features(x), self.s_ext, op.reset)
        return y, self._replace(s=s, s_ext=s_ext)

    def features(self, x: Streams) -> Float[Array, "B T H F"]:
        """Returns psi(r)."""
        return gaussian(x.r, self.supports, self.gamma)

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs unchanged: no recurrence is added."""
        return x

    def queries(self, x: Streams, query: Query) -> "Residual":
        """Returns q for S_0 and psi(r) for S_ext."""
        return self._replace(s=query(x), s_ext=self.features(x), supports=None, gamma=None)


class Offset(NamedTuple):
    """State-offset tuning (arXiv 2503.03499): `y_t = (S_t + O) r_t`; O is not written and does not fade.

    A reset makes it zero. With O = 0 it is the plain state bit for bit.
    """

    s: Float[Array, "*L B H V K"]
    """The plain matrix S."""
    offset: Float[Array, "*L B H V K"]
    """O, which is added to S where it is read."""

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Offset"]:
        """Reads S and O; writes S."""
        y, s = op(x, self.s)
        y, offset = _read_beside(y, x.r.astype(jnp.float32), self.offset, op.reset)
        return y, Offset(s, offset)

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs unchanged: no recurrence is added."""
        return x

    def queries(self, x: Streams, query: Query) -> "Offset":
        """Returns q for S_0 and r for O."""
        return Offset(query(x), x.r)


def _read_beside(
    y: Float[Array, "B T H V"], query: Float[Array, "B T H F"], matrix: Float[Array, "B H V F"], reset: Array | None
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V F"]]:
    """Returns (y + matrix query, matrix after the last token); it is only read, until a reset makes it zero."""
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
    """The plain matrix S."""
    s_ext: Float[Array, "*L B H V M"]
    """State of the second recurrence."""
    gate: Float[Array, "*L B H"]
    """Factor on its outputs."""
    supports: Float[Array, "*L B H M K"]
    """The supports u_1 .. u_M."""
    gamma: Float[Array, "*L B H"]
    """The kernel's gamma."""
    centre: Float[Array, "*L B H M"]
    """What is subtracted from the features of x / |x|."""

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Recurrent"]:
        """Runs both recurrences and adds their outputs."""
        y, s = op(x, self.s)
        lifted, s_ext = op(self.lifted(x), self.s_ext)
        gated = self.gate[:, None, :, None] * lifted.astype(jnp.float32)
        return y + gated.astype(y.dtype), self._replace(s=s, s_ext=s_ext)

    def lifted(self, x: Streams) -> Streams:
        """Returns the inputs of the second recurrence."""
        square = jnp.square(self.supports)
        mix = square / jnp.sum(square, axis=-1, keepdims=True)
        gamma = self.gamma[:, None, :, None]
        constant = gamma * (1 + jnp.sum(square, axis=-1)[:, None])

        def unit(z: Float[Array, "B T H K"]) -> Float[Array, "B T H M"]:
            exponent = 2 * gamma * _by_head(_normal(z), self.supports) - constant
            return _normal(jnp.exp(exponent) - self.centre[:, None])

        log_w = jnp.log(_by_head(jnp.exp(x.log_w), mix))
        r, k = _length(x.r) * unit(x.r), _length(x.k) * unit(x.k)
        return Streams(r, log_w, k, x.v, unit(x.kk), _by_head(x.iclr, mix))

    def queries(self, x: Streams, query: Query) -> "Recurrent":
        """Returns the q of each recurrence."""
        parts = {"s": query(x), "s_ext": query(self.lifted(x))}
        return self._replace(**parts, gate=None, supports=None, gamma=None, centre=None)


class Literal(NamedTuple):
    """The formula word for word: phi on w, k, kk, iclr, v and r, a state S [M, M], `y = Q S phi(r)`.

    phi(w) is a similarity in (0, 1], not a decay: check stability first.
    """

    s: Float[Array, "*L B H V K"]
    """The pre-trained matrix, carried along unused."""
    s_ext: Float[Array, "*L B H M M"]
    """The state S."""
    supports: Float[Array, "*L B H 6 M K"]
    """The supports: a set for each of r, w, k, kk, iclr, v, in this order."""
    gamma: Float[Array, "*L B H 6"]
    """The kernel's gamma of each set."""
    out: Float[Array, "*L B H V M"]
    """Q, which maps outputs back."""

    def attend(self, x: Streams, op: WKV) -> tuple[Array, "Literal"]:
        """Runs the lifted recurrence and maps its output back."""
        y, s_ext = op._replace(implementation="scan")(self.lifted(x), self.s_ext)
        return jnp.einsum("bthm,bhvm->bthv", y, self.out).astype(x.v.dtype), self._replace(s_ext=s_ext)

    def lifted(self, x: Streams) -> Streams:
        """Returns phi of every input."""
        streams = (x.r, jnp.exp(x.log_w), x.k, x.kk, x.iclr, x.v)
        r, log_w, k, kk, iclr, v = (
            log_gaussian(z, self.supports[:, :, i], self.gamma[:, :, i]) for i, z in enumerate(streams)
        )
        return Streams(jnp.exp(r), log_w, jnp.exp(k), jnp.exp(v), jnp.exp(kk), jnp.exp(iclr))

    def queries(self, x: Streams, query: Query) -> "Literal":
        """Returns q of the lifted recurrence."""
        return self._replace(s=None, s_ext=query(self.lifted(x)), supports=None, gamma=None, out=None)


MAP = ("supports", "gamma", "centre", "out")
"""Fields of a `WKVState` that define its map; the others are matrices, and a gate, that can be trained and mixed."""
WKV_STATES: dict[str, type] = {"residual": Residual, "offset": Offset, "recurrent": Recurrent, "literal": Literal}
"""The kinds of `WKVState` by the names that state files have for them."""


def log_gaussian(
    x: Float[Array, "B T H K"], supports: Float[Array, "B H M K"], gamma: Float[Array, "B H"]
) -> Float[Array, "B T H M"]:
    """Returns -gamma |x - u_m|^2 for every support, float32."""
    x = x.astype(jnp.float32)
    inner = _by_head(x, supports)
    squares = jnp.sum(jnp.square(x), -1, keepdims=True) + jnp.sum(jnp.square(supports), -1)[:, None]
    return -gamma[:, None, :, None] * jnp.maximum(squares - 2 * inner, 0)


def gaussian(
    x: Float[Array, "B T H K"], supports: Float[Array, "B H M K"], gamma: Float[Array, "B H"]
) -> Float[Array, "B T H M"]:
    """Returns the kernel features psi(x) of vectors.

    Args:
      x: vectors [B, T, H, K].
      supports: u_1 .. u_M of each row and head [B, H, M, K].
      gamma: of each row and head [B, H].

    Returns:
      exp(-gamma |x - u_m|^2) [B, T, H, M], in (0, 1], float32.
    """
    return jnp.exp(log_gaussian(x, supports, gamma))


def _by_head(x: Float[Array, "B T H K"], matrix: Float[Array, "B H M K"]) -> Float[Array, "B T H M"]:
    """Applies every head's own matrix to every token, float32; heads before tokens are twice as fast on CPU."""
    x = jnp.moveaxis(x.astype(jnp.float32), 1, 2)
    return jnp.moveaxis(jnp.einsum("bhtk,bhmk->bhtm", x, matrix, precision="highest"), 1, 2)


def _length(x: Float[Array, "*B K"]) -> Float[Array, "*B 1"]:
    """Returns |x| in float32; its gradient at zero is finite."""
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True), 1e-24))


def _normal(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    return x.astype(jnp.float32) / _length(x)
