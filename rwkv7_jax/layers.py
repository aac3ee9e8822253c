"""Time mix and channel mix of RWKV-7 (arXiv 2503.14456), as released; both work alone.

Parameters carry the released names and orientation: a linear weight is [out, in], LoRA matrices are [in, rank] and
[rank, out], vectors are [D]. Norms, decays and the state are float32; products run in `dtype` or `product_dtype`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rwkv7_jax import init, quantisation, streamed
from rwkv7_jax.products import product
from rwkv7_jax.quantisation import QuantisedWeight
from rwkv7_jax.streamed import StreamedWeight
from rwkv7_jax.token_shift import token_shift
from rwkv7_jax.wkv_state import WKV, Streams, WKVState, attend

LOG_DECAY_FLOOR = -0.6065306597126334
"""-exp(-0.5): log w lies between this and 0."""
TRANSPOSED = "weight_t"
"""Name of a linear weight as [in, out]."""
LORA = tuple(f"{name}{part}" for name in "wavg" for part in (1, 2))
"""Names of the matrices of a time mix's LoRA pairs."""


class Linear(nn.Module):
    """Computes y = x W^T with W [out, in] or a `QuantisedWeight`; for decoding W^T may be given, see `for_decoding`."""

    features: int
    kernel_init: init.Initializer
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B O"]:
        if self.has_variable("params", TRANSPOSED):
            return product("...d,do->...o", x, self.get_variable("params", TRANSPOSED), self.dtype)
        given = self.get_variable("params", "weight")
        if isinstance(given, StreamedWeight):
            return streamed.product(x, given, self.dtype)
        if isinstance(given, QuantisedWeight):
            return quantisation.product(x, given, self.dtype)
        weight = self.param("weight", self.kernel_init, (self.features, x.shape[-1]))
        return product("...d,od->...o", x, weight, self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis in float32, returned in `dtype`; `groups` > 1 normalises head by head."""

    epsilon: float = 1e-5
    groups: int = 1
    dtype: str = "float32"
    scale_init: init.Initializer = init.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = (x.shape[-1],)
        weight, bias = self.param("weight", self.scale_init, shape), self.param("bias", init.zeros, shape)
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)
        normal = jax.nn.standardize(grouped, axis=-1, epsilon=self.epsilon).reshape(x.shape)
        ndim = (1,) * (x.ndim - 1) + shape
        return (normal * weight.astype(jnp.float32).reshape(ndim) + bias.astype(jnp.float32).reshape(ndim)).astype(
            self.dtype
        )


class TimeMix(nn.Module):
    """The RWKV-7 time mix. Width from the input, any head size dividing it, any LoRA ranks.

    With `v_first=None` it is a first layer: it has no v0, v1, v2 and returns its own values as `v_first`.
    """

    head_size: int = 64
    """Width of a head; it divides the input's."""
    decay_lora: int = 64
    """LoRA rank of the decay."""
    aaa_lora: int = 64
    """LoRA rank of the in-context learning rate."""
    mv_lora: int = 32
    """LoRA rank of the gate between the layer's values and `v_first`."""
    gate_lora: int = 128
    """LoRA rank of the output gate."""
    layer_id: int = 0
    """Number of the layer, from 0; it shapes the initialisation alone."""
    n_layer: int = 1
    """Layers of the model, for the initialisation alone."""
    dtype: str = "float32"
    """Dtype of activations and outputs."""
    product_dtype: str | None = None
    """What the factors of matrix products are rounded to; None: `dtype`."""
    wkv_implementation: str | None = None
    """A key of `pallas_kernels.IMPLEMENTATIONS`; None picks by device."""

    def vector(self, name: str, initializer: init.Initializer, shape: tuple[int, ...], dtype=None) -> Array:
        """Returns a parameter vector with leading unit axes, ready to broadcast over [B, T, ...]."""
        return self.param(name, initializer, shape).astype(dtype or self.dtype)[None, None]

    def lora(self, name: str, x, rank: int, bias, activation=None) -> Float[Array, "B T D"]:
        """Returns bias + activation(x m1) m2 in float32, the bias being the vector `{name}0` if given."""
        width = x.shape[-1]
        factors = self.product_dtype or self.dtype

        def multiply(part: int, initializer: init.Initializer, x: Array, outputs: int) -> Array:
            given = self.get_variable("params", f"{name}{part}")
            if isinstance(given, StreamedWeight):
                return streamed.product(x, given, factors)
            matrix = self.param(f"{name}{part}", initializer, (x.shape[-1], outputs))
            return product("...d,do->...o", x, matrix, factors)

        low = multiply(1, init.zeros, x, rank)
        out = multiply(2, init.orthogonal(0.1), activation(low) if activation else low, width).astype(jnp.float32)
        return out if bias is None else out + self.vector(f"{name}0", init.constant(bias), (width,), jnp.float32)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        shift: Float[Array, "B D"],
        wkv: Float[Array, "B H V K"] | WKVState,
        v_first: Float[Array, "B T D"] | None = None,
        *,
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"], Float[Array, "B H V K"] | WKVState, Float[Array, "B T D"]]:
        """Mixes tokens along time.

        Args:
          x: normalised activations [B, T, D].
          shift: the input of the token before the first one [B, D].
          wkv: state before the first token, float32 [B, H, V, K] or any `WKVState`.
          v_first: the first layer's values [B, T, D]; None in the first layer.
          valid: bool [B, T]; False marks padding, anywhere in a row: it changes no state.
          reset: bool [B, T]; True starts afresh from the zero state at that token.

        Returns:
          (output [B, T, D], shift and state after the last valid token, v_first [B, T, D]).
        """
        batch, time, width = x.shape
        heads = width // self.head_size
        depth = self.layer_id / max(self.n_layer - 1, 1)
        rest = 1.0 - self.layer_id / self.n_layer
        ramp, zigzag = init.linear_ramp(width), init.zigzag(width, self.head_size)
        factors = self.product_dtype or self.dtype
        previous, shift = token_shift(x, shift, valid, reset)
        delta = previous - x

        def mixed(name: str, power: float):
            return x + delta * self.vector(f"x_{name}", init.lerp(width, power * rest), (width,))

        def project(name: str, scale: float, z):
            return Linear(width, init.uniform(scale * width**-0.5), factors, name=name)(z)

        x_r, x_w, x_k, x_v, x_a, x_g = (
            mixed(name, power) for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True)
        )
        r, k, v = project("receptance", 0.5, x_r), project("key", 0.05, x_k), project("value", 0.5, x_v)
        decay = self.lora("w", x_w, self.decay_lora, init.decay_bias(width, self.head_size, depth), jnp.tanh)
        log_w = LOG_DECAY_FLOOR * jax.nn.sigmoid(decay)
        if v_first is None:
            v_first = v
        else:
            v_gate = jax.nn.sigmoid(self.lora("v", x_v, self.mv_lora, 0.73 - 0.4 * ramp)).astype(self.dtype)
            v = v + (v_first - v) * v_gate
        iclr = jax.nn.sigmoid(self.lora("a", x_a, self.aaa_lora, -0.19 + 0.3 * zigzag + 0.4 * ramp)).astype(self.dtype)
        gate = self.lora("g", x_g, self.gate_lora, None, jax.nn.sigmoid).astype(self.dtype)
        kk = k * self.vector("k_k", init.constant(0.71 - 0.1 * ramp), (width,))
        k = k * (1 + (iclr - 1) * self.vector("k_a", init.constant(jnp.full(width, 1.02)), (width,)))

        def split(z):
            return z.reshape(batch, time, heads, self.head_size)

        kk = normalise(split(kk))
        r, k, v = split(r), split(k), split(v)
        streams = Streams(r, split(log_w), k, v, kk, split(iclr))
        y, wkv = attend(wkv, streams, WKV(valid, reset, self.wkv_implementation))
        ln_x = init.constant(jnp.full(width, ((1 + self.layer_id) / self.n_layer) ** 0.7))
        y = LayerNorm(64e-5, heads, self.dtype, ln_x, name="ln_x")(y.reshape(batch, time, width))
        r_k = self.vector("r_k", init.constant(jnp.full((heads, self.head_size), -0.04)), (heads, self.head_size))
        bonus = jnp.sum((r * k * r_k).astype(jnp.float32), axis=-1, keepdims=True).astype(self.dtype) * v
        out = Linear(width, init.zeros, factors, name="output")((y + bonus.reshape(y.shape)) * gate)
        return out, shift, wkv, v_first


def normalise(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Returns x / max(|x|, 1e-12) over the last axis, computed in float32; its gradient at zero is finite."""
    z = x.astype(jnp.float32)
    return (z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24))).astype(x.dtype)


class ChannelMix(nn.Module):
    """The RWKV-7 channel mix: W_v relu(W_k x_k)^2. Width from the input."""

    dim_ffn: int = 0
    """Hidden width; 0 means four times the input's."""
    layer_id: int = 0
    """Number of the layer, from 0; it shapes the initialisation alone."""
    n_layer: int = 1
    """Layers of the model, for the initialisation alone."""
    dtype: str = "float32"
    """Dtype of activations and outputs."""
    product_dtype: str | None = None
    """What the factors of matrix products are rounded to; None: `dtype`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        shift: Float[Array, "B D"],
        *,
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """Mixes channels, each token with the one before it.

        Args:
          x: normalised activations [B, T, D].
          shift: the input of the token before the first one [B, D].
          valid: bool [B, T]; False marks padding.
          reset: bool [B, T]; True starts afresh from a zero shift at that token.

        Returns:
          (output [B, T, D], shift after the last valid token [B, D]).
        """
        width = x.shape[-1]
        rest = 1.0 - self.layer_id / self.n_layer
        previous, shift = token_shift(x, shift, valid, reset)
        x_k = self.param("x_k", init.lerp(width, rest**4), (width,)).astype(self.dtype)[None, None]
        x_k = x + (previous - x) * x_k
        factors = self.product_dtype or self.dtype
        hidden = Linear(self.dim_ffn or 4 * width, init.uniform(0.5 * width**-0.5), factors, name="key")(x_k)
        return Linear(width, init.zeros, factors, name="value")(jnp.square(jax.nn.relu(hidden))), shift
