"""What all routes share: the model and its engine, the states, the conversations, the counts and the limits."""

import asyncio
import base64
import binascii
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from experiments.config.serve import LimitsConfig
from experiments.serve.conversations import RECORD, Conversation, Conversations, Record
from experiments.serve.errors import ApiError, invalid
from experiments.serve.metrics import Metrics
from experiments.serve.scores import Speller
from experiments.serve.state_files import BASE, from_bytes
from experiments.serve.states import StateFolder
from experiments.serve.wishes import Source
from rwkv7_jax.checkpoint.states import TunedState
from rwkv7_jax.inference.engine import Engine
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer.abilities import encode_after

SHORT = 1000
"""Characters of a text that is tokenised in the event loop; longer ones are in a thread."""
TOKENISING = ThreadPoolExecutor(2, thread_name_prefix="tokenise")
"""Threads of their own, so that long prompts do not hold up states and sessions."""


class Start(NamedTuple):
    """Where an answer begins."""

    state: State | None = None
    source: str = "none"
    """What identifies the state that the conversation began from."""
    tokens: int = 0
    """That the state has read."""
    answers: int = 0


@dataclasses.dataclass(frozen=True)
class Service:
    """A model that answers requests."""

    lm: LanguageModel
    name: str
    """The model's name, as clients write it."""
    created: int
    """When the server began, in seconds since 1970."""
    engine: Engine
    states: StateFolder
    sessions: Conversations
    responses: Conversations
    limits: LimitsConfig
    longest_token: int
    """Bytes of the longest token."""
    speller: Speller
    metrics: Metrics = dataclasses.field(default_factory=Metrics)

    async def encode(self, text: str, field: str, start: Start) -> tuple[int, ...]:
        """The tokens of a prompt; of an empty one at the beginning, that which separates texts in training.

        Raises:
          ApiError: a 400; it is longer than this server reads, or nothing new in a conversation.
        """
        most = self.limits.max_prompt
        if len(text) > most * self.longest_token:
            raise too_long(field, f"the prompt has {len(text)} characters", most)
        encode = partial(encode_after, self.lm.tokenizer) if start.tokens else self.lm.tokenizer.encode
        loop = asyncio.get_running_loop()
        ids = encode(text) if len(text) <= SHORT else await loop.run_in_executor(TOKENISING, encode, text)
        if not ids and start.tokens:
            raise invalid(field, "is empty; a conversation goes on with new text")
        return self.checked(ids or [self.lm.tokenizer.eos_id], field)

    def checked(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        """Token ids of a prompt.

        Raises:
          ApiError: a 400; they are too many.
        """
        if len(ids) > self.limits.max_prompt:
            raise too_long(field, f"the prompt has {len(ids)} tokens", self.limits.max_prompt)
        return tuple(ids)

    async def start(self, source: Source | None) -> Start:
        """Where an answer begins that goes on from no conversation of this server.

        Raises:
          ApiError: the state is not there, or does not fit.
        """
        if source is None or source.identity == "none":
            return Start()
        loaded = await asyncio.to_thread(self.find, source)
        return Start(loaded.state, source.identity, *_read_before(loaded))

    def find(self, source: Source) -> TunedState:
        """The state that a request names, mixes or brings.

        Raises:
          ApiError: it is not there, or does not fit.
        """
        if source.mix:
            return self.states.mixed(dict(source.mix), "state.mix")
        if source.data is not None:
            return from_bytes(
                decoded(source.data, "state"),
                "state",
                self.states.model,
                layout=source.layout,
                override=source.override,
            )
        return self.states.load(source.name, "model") if source.name else self.states.zero()

    def kept(self, conversation: Conversation, method: str) -> TunedState:
        """A conversation's state, which says what it has read."""
        metadata = {BASE: self.lm.weights_hash, "method": method, RECORD: conversation.record.sealed()}
        return TunedState(conversation.state, metadata)


def decoded(text: str, field: str) -> bytes:
    """The bytes of a text in base64.

    Raises:
      ApiError: a 400; it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(field, "is not base64") from None


def too_long(field: str, what: str, most: int) -> ApiError:
    """The 400 of a prompt that is too long."""
    return invalid(field, f"{what}; this server reads {most} tokens at most", "context_length_exceeded")


def _read_before(loaded: TunedState) -> tuple[int, int]:
    """(tokens, answers) that a state says it has read; (0, 0) of a tuned one."""
    try:
        record = Record.unsealed(loaded.metadata[RECORD])
    except (KeyError, ValueError):
        return 0, 0
    return record.tokens, record.answers
