"""The settings of `rwkv7 chat`."""

import dataclasses
from typing import Literal

from experiments.config.commands import FLOAT32_MODEL, CacheConfig
from experiments.config.overrides import option
from experiments.config.schema import ModelConfig

CACHE = CacheConfig()


@dataclasses.dataclass(frozen=True)
class Chat:
    """`rwkv7 chat`. Sampling is by default what the card of the G1 models gives for chats."""

    model: ModelConfig = FLOAT32_MODEL
    state: str | None = option(None, "state file to start from; none: the zero state")
    state_layout: str | None = option(None, "axis order of a state file that does not say it")
    ab: bool = option(False, "answer twice: with the state and without")
    system_prompt: str = option("", "what the conversation begins with, with escapes", escapes=True)
    think: Literal["on", "short", "long", "off"] | None = option(
        None, "chain of thought before an answer, by the templates of G1; off: an empty one; none: as the model likes"
    )
    temperature: float = option(1.0, "0 takes the most likely token always")
    top_p: float = option(0.3, "keep the likeliest tokens up to this probability")
    top_k: int = option(0, "keep this many of the likeliest tokens; 0: all")
    presence_penalty: float = option(0.5, "against tokens that have occurred in the answer")
    frequency_penalty: float = option(0.5, "against tokens, for each occurrence")
    penalty_decay: float = option(0.996, "how occurrences fade, per token")
    seed: int = option(0, "same seed, same chat")
    max_new_tokens: int = option(1000, "end an answer after this many tokens")
    stop: tuple[str, ...] = option(
        (), "end an answer before this text too, with escapes; may be repeated", repeat=True, escapes=True
    )
    quiet: bool = option(False, "no report about the model on standard error")
    system: CacheConfig = CACHE
