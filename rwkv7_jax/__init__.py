"""RWKV-7 in JAX and Flax: the model and everything that makes a checkpoint usable.

Names are imported when they are first used, so that command lines answer `--help` without loading flax.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from rwkv7_jax.moved import MOVED, refuse_moved

if TYPE_CHECKING:
    from rwkv7_jax import (
        checkpoint,
        flops,
        functional,
        generation,
        inference,
        sharding,
        tokenizer,
        wkv_state,
    )
    from rwkv7_jax.checkpoint import TunedState, export_state, load_state, save_state
    from rwkv7_jax.checkpoint import load as load_checkpoint
    from rwkv7_jax.checkpoint import save as save_checkpoint
    from rwkv7_jax.config import RWKV7Config
    from rwkv7_jax.generation.draft import Draft
    from rwkv7_jax.generation.generate import generate, stream
    from rwkv7_jax.generation.sampling import SamplingParams
    from rwkv7_jax.inference.engine import Engine, Request
    from rwkv7_jax.language_model import LanguageModel
    from rwkv7_jax.layers import ChannelMix, TimeMix
    from rwkv7_jax.model import RWKV7, unstack_blocks
    from rwkv7_jax.state import State, zero_state
    from rwkv7_jax.tokenizer import load_tokenizer

__version__ = "0.2.0"

__all__ = [
    "RWKV7",
    "ChannelMix",
    "Draft",
    "Engine",
    "LanguageModel",
    "RWKV7Config",
    "Request",
    "SamplingParams",
    "State",
    "TimeMix",
    "TunedState",
    "__version__",
    "checkpoint",
    "export_state",
    "flops",
    "functional",
    "generate",
    "generation",
    "inference",
    "load_checkpoint",
    "load_state",
    "load_tokenizer",
    "save_checkpoint",
    "save_state",
    "sharding",
    "stream",
    "tokenizer",
    "unstack_blocks",
    "wkv_state",
    "zero_state",
]

_HOME = {
    "RWKV7": "model", "unstack_blocks": "model", "ChannelMix": "layers", "TimeMix": "layers",
    "RWKV7Config": "config", "zero_state": "state", "State": "state", "LanguageModel": "language_model",
    "TunedState": "checkpoint", "export_state": "checkpoint", "load_state": "checkpoint", "save_state": "checkpoint",
    "load_checkpoint": "checkpoint:load", "save_checkpoint": "checkpoint:save", "load_tokenizer": "tokenizer",
    "Engine": "inference.engine", "Request": "inference.engine",
    "Draft": "generation.draft", "SamplingParams": "generation.sampling",
    "generate": "generation.generate", "stream": "generation.generate",
}  # fmt: skip
"""Name -> module, or module:name there; other names in `__all__` are submodules."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _HOME.get(name, name).partition(":")
    loaded = importlib.import_module(f"{__name__}.{module}")
    return getattr(loaded, original or name) if name in _HOME else loaded


def __dir__() -> list[str]:
    return sorted(__all__)


refuse_moved(MOVED, sys.argv, sys.orig_argv)
