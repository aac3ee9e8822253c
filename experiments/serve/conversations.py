"""Conversations that are kept between requests: the state after all that was read and written, one file each.

A file replaces the one before at once and whole, and carries the hash of its numbers and the checksum of its record, so
that after a kill, at any moment, a conversation goes on from its last finished answer, token for token.
"""

import collections
import pathlib
import threading
from typing import NamedTuple

import jax
import numpy as np

from experiments.reporting.json_text import json_text
from experiments.serve.errors import ApiError
from experiments.serve.names import is_name
from experiments.serve.state_files import BASE, Model
from rwkv7_jax import checksums
from rwkv7_jax.checkpoint.files import CheckpointError, clear_temporaries
from rwkv7_jax.checkpoint.states import load_state, save_state
from rwkv7_jax.state import State

RECORD = "conversation"
"""The field of a state file that holds the record."""
SUFFIX = ".safetensors"


class Record(NamedTuple):
    """What is known of a conversation beside its state."""

    model: str
    """As the first request named it."""
    source: str
    """What identifies the state that it began from."""
    tokens: int
    """Read and written so far."""
    answers: int

    def sealed(self) -> str:
        """As JSON with a checksum."""
        return checksums.seal(json_text(self._asdict()))

    @classmethod
    def unsealed(cls, text: str) -> "Record":
        """The record of such a text.

        Raises:
          ValueError: it is damaged.
        """
        found = checksums.unseal(text)
        model, source, tokens, answers = (found.get(name) for name in cls._fields)
        if not (isinstance(model, str) and isinstance(source, str)):
            raise ValueError("it is not a record of a conversation")
        if not (isinstance(tokens, int) and isinstance(answers, int)):
            raise ValueError("it is not a record of a conversation")
        return cls(model, source, tokens, answers)


class Conversation(NamedTuple):
    """A state and what led to it."""

    state: State
    record: Record


class Conversations:
    """Conversations by name, the newest `limit` of them. Its methods may be called from any thread."""

    def __init__(self, folder: pathlib.Path, model: Model, limit: int, kind: str):
        """The folder must not be written by another process; `kind` is what messages call a conversation."""
        self.kind = kind
        self._folder, self._model, self._limit, self._lock = folder, model, limit, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        clear_temporaries(folder)
        found = [(path.stat().st_mtime_ns, path.stem) for path in folder.glob(f"*{SUFFIX}") if is_name(path.stem)]
        self._names = collections.OrderedDict.fromkeys(name for _, name in sorted(found))
        self._busy: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        """All names, the newest last."""
        with self._lock:
            return list(self._names)

    def begin(self, name: str) -> None:
        """Marks a conversation as being continued.

        Raises:
          ApiError: a 409; it already is.
        """
        with self._lock:
            if name in self._busy:
                raise ApiError(409, f"the {self.kind} {name!r} is answering another request; wait for it", retry=1)
            self._busy.add(name)

    def end(self, name: str) -> None:
        """Takes the mark away."""
        with self._lock:
            self._busy.discard(name)

    def read(self, name: str) -> Conversation | None:
        """The conversation of a name, None if there is none.

        Raises:
          ApiError: a 409; its file is damaged or of another model.
        """
        path = self._folder / f"{name}{SUFFIX}"
        try:
            loaded = load_state(path, config=self._model.config)
            record = Record.unsealed(loaded.metadata.get(RECORD, ""))
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            raise self._unusable(name, "its file is damaged") from None
        if loaded.metadata.get(BASE) != self._model.weights_hash:
            raise self._unusable(name, "it was begun with another checkpoint")
        return Conversation(jax.tree.map(np.asarray, loaded.state), record)

    def write(self, name: str, conversation: Conversation) -> None:
        """Keeps a conversation; returns when it is on the disk. Beyond the limit the oldest go.

        Raises:
          ApiError: the disk does not take it (507); what was kept before stays.
        """
        metadata = {BASE: self._model.weights_hash, "method": self.kind, RECORD: conversation.record.sealed()}
        try:
            save_state(self._folder / f"{name}{SUFFIX}", conversation.state, metadata=metadata)
        except CheckpointError:
            raise ApiError(500, f"the {self.kind} cannot be kept: its state is not finite") from None
        except OSError as error:
            reason = error.strerror or "disk error"
            raise ApiError(507, f"the {self.kind} cannot be kept: {reason}; it stays as it was before") from None
        with self._lock:
            self._names[name] = None
            self._names.move_to_end(name)
            old = [one for one in self._names if one not in self._busy and one != name]
            surplus = old[: max(0, len(self._names) - self._limit)]
            for one in surplus:
                del self._names[one]
        for one in surplus:
            (self._folder / f"{one}{SUFFIX}").unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Removes a conversation.

        Raises:
          ApiError: there is none (404), or it is being continued (409).
        """
        with self._lock:
            if name in self._busy:
                raise ApiError(409, f"the {self.kind} {name!r} is answering a request; wait for it", retry=1)
            if not (self._folder / f"{name}{SUFFIX}").is_file():
                raise self.missing(name)
            (self._folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
            self._names.pop(name, None)

    def missing(self, name: str, field: str | None = None) -> ApiError:
        """The 404 of a conversation that is not there."""
        return ApiError(404, f"there is no {self.kind} {name!r}", param=field, code=f"{self.kind}_not_found")

    def _unusable(self, name: str, why: str) -> ApiError:
        return ApiError(
            409, f"the {self.kind} {name!r} cannot go on: {why}; delete it and begin anew", code=f"{self.kind}_unusable"
        )
