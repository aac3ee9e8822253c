"""RWKV-7 in JAX and Flax: the model and everything that makes a checkpoint usable."""

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.layers import ChannelMix, TimeMix
from rwkv7_jax.model import RWKV7, unstack_blocks
from rwkv7_jax.state import zero_state
from rwkv7_jax.types import State

__all__ = ["RWKV7", "ChannelMix", "RWKV7Config", "State", "TimeMix", "unstack_blocks", "zero_state"]
