"""LoRA (arXiv 2106.09685) on a model's projections: the baseline that does change the function's weights, by W + B A.

The frozen W is never differentiated: `W x + B (A x)` needs products with A and B alone. B is zero at start.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.quantisation import QuantisedWeight, dequantise
from rwkv7_jax.state import State, zero_state
from state_tuning.baselines.adapters import DOWN, UP
from state_tuning.core.train import Method

__all__ = ["Lora", "Pair", "insert", "merge", "method"]

PROJECTIONS = ("att/receptance", "att/key", "att/value", "att/output")


class Pair(NamedTuple):
    """A and B of one projection in all layers."""

    down: Float[Array, "L R I"]
    """A, from I inputs to rank R; random at start."""
    up: Float[Array, "L O R"]
    """B, from rank R to O outputs; zero at start."""


Pairs = dict[str, Pair]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections, and how large."""

    rank: int = 8
    """R of each pair of matrices."""
    alpha: float = 16.0
    """The matrices enter as `alpha / rank * B A`."""
    projections: tuple[str, ...] = PROJECTIONS
    """Of each block: `att/receptance`, ..., also `ffn/key` and `ffn/value`."""

    def __post_init__(self):
        known = (*PROJECTIONS, "ffn/key", "ffn/value")
        if self.rank < 1 or not self.projections:
            raise ValueError(f"rank {self.rank} of {len(self.projections)} projections: both must be at least 1")
        if wrong := [name for name in self.projections if name not in known]:
            raise ValueError(f"projection {wrong[0]!r} is unknown: choose from {', '.join(known)}")


class LowRank(NamedTuple):
    """An `Adapter`: the zero state of a batch, and weights with small matrices beside them."""

    pairs: Pairs
    rows: int

    def adapt(self, model: RWKV7, params: Params) -> tuple[Params, State]:
        """Returns the weights with the pairs beside them, and the zero state."""
        return insert(params, self.pairs), zero_state(model.config, self.rows)


def method(config: RWKV7Config, lora: Lora, key: Key[Array, ""]) -> Method:
    """Returns LoRA as a method: it trains the pairs, the state stays zero.

    Args:
      config: the model's dimensions.
      lora: which projections, and how large.
      key: of the random start of A.

    Returns:
      The method. It needs an `adapters.AdaptedRWKV7` model; `merge` gives weights for any other.
    """

    def init() -> Pairs:
        keys = jax.random.split(key, len(lora.projections))
        return {name: _start(config, name, lora.rank, k) for name, k in zip(lora.projections, keys, strict=True)}

    def graft(pairs: Pairs, batch_size: int) -> LowRank:
        return LowRank(_scaled(pairs, lora), batch_size)

    return Method(init, graft)  # pyright: ignore[reportArgumentType]


def insert(params: Params, pairs: Pairs) -> Params:
    """Puts the pairs beside the weights, for `AdaptedRWKV7`, which adds `up (down x)`. Copies no weight.

    Args:
      params: the model's weights.
      pairs: by projection, as they enter: `alpha / rank` is in them already.

    Returns:
      The tree of weights with two more leaves in each of these layers.
    """
    return _edited(params, pairs, lambda linear, pair: linear | {DOWN: pair.down, UP: pair.up})


def merge(params: Params, pairs: Pairs, lora: Lora) -> Params:
    """Computes new weights W + alpha / rank B A, for any model.

    Args:
      params: the model's weights.
      pairs: what was trained, by projection.
      lora: the settings that it was trained with.

    Returns:
      The weights, of the same dtypes; those without a pair are shared with `params`. Of quantised weights those that
      change are float32.
    """

    def merged(linear: Params, pair: Pair) -> Params:
        extra = jnp.einsum("...or,...ri->...oi", pair.up, pair.down, precision="highest")
        given = linear["weight"]
        weight = dequantise(given) if isinstance(given, QuantisedWeight) else jnp.asarray(given)
        return linear | {"weight": (weight.astype(jnp.float32) + extra).astype(weight.dtype)}

    return _edited(params, _scaled(pairs, lora), merged)


def _edited(params: Params, pairs: Pairs, edit: Callable[[Params, Pair], Params]) -> Params:
    """The tree with each layer named in `pairs` replaced by `edit(linear layer's dict, its Pair)`."""
    out = dict(params)
    for block in [name for name in params if name.startswith("block")]:
        index = slice(1, None) if block == "blocks" else int(block.removeprefix("block_"))
        out[block] = {part: dict(layers) for part, layers in params[block].items()}
        for name, pair in pairs.items():
            part, layer = name.split("/")
            out[block][part][layer] = edit(params[block][part][layer], Pair(pair.down[index], pair.up[index]))
    return out


def _start(config: RWKV7Config, name: str, rank: int, key: Key[Array, ""]) -> Pair:
    wide = config.dim_ffn
    inner, outer = {"ffn/key": (config.n_embd, wide), "ffn/value": (wide, config.n_embd)}.get(
        name, (config.n_embd,) * 2
    )
    down = jax.random.normal(key, (config.n_layer, rank, inner), jnp.float32) * inner**-0.5
    return Pair(down, jnp.zeros((config.n_layer, outer, rank), jnp.float32))


def _scaled(pairs: Pairs, lora: Lora) -> Pairs:
    factor = jnp.asarray(lora.alpha / lora.rank, jnp.float32)
    return {name: pair._replace(up=pair.up * factor) for name, pair in pairs.items()}
