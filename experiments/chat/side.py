"""One of the answers of a chat: a start state, what was said from there, and the model that has read it."""

import time
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chat.model import ChatModel
from rwkv7_jax import State
from rwkv7_jax.generation.chat_template import STOPS, Think, answer_opening, render, think_mode
from rwkv7_jax.generation.chat_turns import turn_text
from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.wkv_state import WKVState

Message = Mapping[str, object]


class Choice(NamedTuple):
    """How an answer is generated."""

    sampling: SamplingParams
    seed: int
    attempt: int
    """Numbers the answers to the same turn."""
    stop: tuple[str, ...]


class Spent(NamedTuple):
    """What the last answer took."""

    read: int
    """Tokens of the conversation that were read for it."""
    generated: int
    seconds: float


class Side:
    """A conversation from one start state."""

    def __init__(self, model: ChatModel, start: State | None, name: str):
        self.name = name
        self.messages: list[Message] = []
        """What was said; the system prompt, if any, comes first."""
        self.spent = Spent(0, 0, 0.0)
        self._model, self.start = model, start
        self._reader = model.reader(start)

    @property
    def tokens_read(self) -> int:
        """Tokens computed so far, read and generated together."""
        return self._reader.fed

    @property
    def context(self) -> int:
        """Tokens of the conversation that the model has read."""
        return len(self._reader.ids)

    def answer(self, choice: Choice, cancelled: Callable[[], bool]) -> Generator[str, None, str]:
        """Answers the last message, and notes the answer, whole or as far as it came.

        Yields:
          Pieces of the answer's text. The generator returns what ended it, in words; nothing if it ended by itself.
        """
        think = think_mode(self.messages[-1])
        text, begin, fed = render(self.messages), time.perf_counter(), self._reader.fed
        key = jax.random.key(choice.seed)
        for number in (len(self.messages), choice.attempt):
            key = jax.random.fold_in(key, number)
        stop = (*STOPS, *choice.stop)
        pieces = self._reader.answer(text, key, choice.sampling, stop=stop, cancelled=cancelled)
        said = ""
        try:
            while True:
                piece = next(pieces)
                said += piece
                yield piece
        except StopIteration as end:
            self._note(think, said)
            generated = len(end.value.tokens)
            self.spent = Spent(self._reader.fed - fed - generated, generated, time.perf_counter() - begin)
            return "" if end.value.finished else "interrupted" if cancelled() else "the longest answer"
        except (KeyboardInterrupt, GeneratorExit):
            self._note(think, said)
            raise

    def _note(self, think: Think | None, said: str) -> None:
        opened = answer_opening(think).removeprefix("Assistant:")
        self.messages.append({"role": "assistant", "content": turn_text(opened + said, keep_empty_lines=True)})

    def state(self) -> State:
        """Returns the state after the conversation and the empty line that ends its last turn."""
        if not self.messages:
            return self._reader.read("")
        return self._reader.read(render(self.messages, add_generation_prompt=False) + "\n\n")

    def restart(self, start: State | None, name: str) -> None:
        """Takes another start state; the conversation is read again from there."""
        self.start, self.name, self._reader = start, name, self._model.reader(start)


def norm(state: State | None) -> float:
    """Returns the Frobenius norm of a state's matrices; 0 for the zero state."""
    if state is None:
        return 0.0
    matrix = state.wkv.s if isinstance(state.wkv, WKVState) else state.wkv
    return float(np.linalg.norm(np.asarray(jnp.asarray(matrix, jnp.float32)).ravel()))
