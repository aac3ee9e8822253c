"""RWKV-7 in JAX and Flax: the model and everything that makes a checkpoint usable.

Names are imported when first used, so that command lines answer `--help` without loading flax.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv7_jax.config import RWKV7Config
    from rwkv7_jax.layers import ChannelMix, TimeMix
    from rwkv7_jax.model import RWKV7, unstack_blocks
    from rwkv7_jax.state import State, zero_state

__all__ = ["RWKV7", "ChannelMix", "RWKV7Config", "State", "TimeMix", "unstack_blocks", "zero_state"]

_HOME = {
    "RWKV7": "model", "unstack_blocks": "model", "ChannelMix": "layers", "TimeMix": "layers",
    "RWKV7Config": "config", "zero_state": "state", "State": "state",
}  # fmt: skip


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
