"""What a chat remembers: its sides, what was said, and how answers are generated."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.chat.model import ChatModel
from experiments.chat.side import Choice, Message, Side
from experiments.config.overrides import UsageError
from experiments.data.jsonl import read_lines
from experiments.reporting.json_text import json_text
from rwkv7_jax.checkpoint import export_state, save_state
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.checkpoint.states import state_metadata
from rwkv7_jax.generation.arguments import random_key
from rwkv7_jax.generation.chat_template import Think, assistant_spans
from rwkv7_jax.generation.chat_turns import turn_text
from rwkv7_jax.generation.sampling import RANGES, WHOLE, SamplingParams

NONE = "none"
SUFFIXES = (".safetensors", ".st", ".pth")


class Conversation:
    """A conversation, or two that hear the same questions: with a state and without.

    Its methods raise ValueError or OSError, in one line, and then have changed nothing.
    """

    def __init__(self, model: ChatModel, sampling: SamplingParams, seed: int, stop: tuple[str, ...]):
        self.sampling, self.seed, self.think = sampling, seed, None
        self.sides = [Side(model, None, NONE)]
        self._model, self._stop, self._attempt = model, stop, 0
        self._written: set[Path] = set()

    think: Think | None
    """How the next answers begin."""

    @property
    def choice(self) -> Choice:
        """How the answer to the last turn is generated."""
        return Choice(self.sampling, self.seed, self._attempt, self._stop)

    @property
    def main(self) -> Side:
        """The side with the state."""
        return self.sides[0]

    @property
    def system(self) -> str:
        """The system prompt, empty if there is none."""
        first = self.main.messages[:1]
        return _text(first[0]) if first and first[0]["role"] == "system" else ""

    @property
    def turns(self) -> int:
        """The user's turns so far."""
        return sum(message["role"] == "user" for message in self.main.messages)

    def hear(self, text: str) -> None:
        """Takes the user's next turn."""
        self._attempt = 0
        own = {} if self.think is None else {"think": self.think}
        for side in self.sides:
            side.messages.append({"role": "user", "content": text, **own})

    def forget_answer(self) -> None:
        """Takes the last answer back, so that it is answered once more, with other random numbers."""
        if not self.turns:
            raise UsageError("nothing was asked yet")
        for side in self.sides:
            while side.messages[-1]["role"] != "user":
                side.messages.pop()
        self._attempt += 1

    def undo(self) -> str:
        """Takes the last turn of the user and its answer back; returns the turn."""
        if not self.turns:
            raise UsageError("nothing was asked yet")
        for side in self.sides:
            while side.messages[-1]["role"] != "user":
                side.messages.pop()
            undone = side.messages.pop()
        self._attempt = 0
        return _text(undone)

    def settle(self) -> None:
        """Gives a side that was interrupted before its answer an empty one."""
        for side in self.sides:
            if side.messages and side.messages[-1]["role"] == "user":
                side.messages.append({"role": "assistant", "content": ""})

    def clear(self) -> None:
        """Forgets what was said, but not the system prompt."""
        for side in self.sides:
            del side.messages[bool(self.system) :]
        self._attempt = 0

    def set_system(self, text: str) -> None:
        """Replaces the system prompt; empty: there is none."""
        first: list[Message] = [{"role": "system", "content": text}] if text else []
        for side in self.sides:
            side.messages[:] = first + [one for i, one in enumerate(side.messages) if i or one["role"] != "system"]

    def set_state(self, path: str, layout: str | None = None) -> None:
        """Starts from the state in a file, or from none; the conversation is read again from there."""
        start = None if path == NONE else self._model.load_state(str(Path(path).expanduser()), layout)
        self.main.restart(start, NONE if start is None else path)
        if start is None:
            del self.sides[1:]

    def set_ab(self, on: bool) -> None:
        """Answers with the state and without, or once."""
        if on and self.main.start is None:
            raise UsageError("there is no state to compare with none; /state FILE loads one")
        if on and len(self.sides) == 1:
            other = Side(self._model, None, NONE)
            other.messages = list(self.main.messages)
            self.sides.append(other)
        if not on:
            del self.sides[1:]

    def set_number(self, name: str, value: str) -> None:
        """Sets a number of the sampling, or the seed."""
        if name != "seed" and name not in RANGES:
            raise UsageError(f"no setting {name!r:.60}; there are: {', '.join(settings(self))}")
        try:
            number = int(value) if name in (*WHOLE, "seed") else float(value)
        except ValueError:
            raise UsageError(f"{name}: {value!r:.60} is no {'whole ' * (name in (*WHOLE, 'seed'))}number") from None
        if name == "seed":
            random_key(number)
            self.seed = int(number)
        else:
            self.sampling = dataclasses.replace(self.sampling, **{name: number})

    def save(self, file: str, layout: str | None) -> list[Path]:
        """Writes the state after the conversation, and the conversation beside it; returns both paths.

        Args:
          file: .safetensors or .st, or .pth for another tool.
          layout: of another tool; None: our own format, with token shifts.
        """
        path = Path(file).expanduser()
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{file!r:.200}: the name must end in one of {', '.join(SUFFIXES)}")
        if layout is None and path.suffix == ".pth":
            raise UsageError(f"{file!r:.200}: a .pth is for another tool; name its layout: /save {file} LAYOUT")
        text = path.with_suffix(".jsonl")
        for one in (path, text):
            if one.exists() and one not in self._written:
                raise UsageError(f"{one} exists; give another name")
        state = self.main.state()
        if layout is None:
            made_by = {"made_by": "rwkv7 chat", "start": self.main.name}
            save_state(path, state, metadata=state_metadata(self._model.weights_hash, "chat") | made_by)
        else:
            export_state(path, state, layout=layout, drop_shifts=True)
        self._written |= {path, text}
        write_text(text, json_text({"messages": self.main.messages}, ensure_ascii=False) + "\n")
        return [path, text]

    def load(self, file: str) -> None:
        """Takes the conversation in a jsonl file of one line instead of this one."""
        path = Path(file).expanduser()
        if path.suffix in SUFFIXES:
            raise UsageError(
                f"{file!r:.200}: /load reads the text beside a state, .jsonl; /state starts from the state"
            )
        lines = read_lines(path)
        if len(lines) > 1:
            raise UsageError(f"{path}: {len(lines)} conversations; give a file with one")
        messages = _messages(lines[0].record.get("messages"), lines[0].where)
        for side in self.sides:
            side.messages = list(messages)
        self._attempt = 0


def _messages(found: object, where: str) -> Sequence[Message]:
    """Checked messages. Raises: UsageError."""
    if not isinstance(found, list) or not all(isinstance(one, Mapping) and "role" in one for one in found):
        raise UsageError(f'{where}: a conversation {{"messages": [{{"role", "content"}}, ...]}} is wanted')
    try:
        assistant_spans(found)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return found


def _text(message: Message) -> str:
    content = message.get("content")
    return turn_text(content) if isinstance(content, str | list) else ""


def settings(conversation: Conversation) -> Mapping[str, float]:
    """Returns the numbers that `/set` sets."""
    return dataclasses.asdict(conversation.sampling) | {"seed": conversation.seed}
