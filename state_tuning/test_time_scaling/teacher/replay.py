"""A file of requests and their answers, so that a run can be repeated without the server that gave them."""

import hashlib
import json
import threading
import warnings
from pathlib import Path

from rwkv7_jax import checksums
from rwkv7_jax.checkpoint.files import atomic, naming
from state_tuning.test_time_scaling.teacher.json_answer import Json

BEGINNINGS = (b'{"crc32": "', b'{"key": "')
"""Of every line, with a checksum and from before there were any."""


class Replay:
    """Answers by request, one JSON line each with its checksum, written as they come.

    A line that a crash has cut off is dropped; so is, with a warning, a damaged one, and its request is sent again. The
    key is the request's content, not the server's address; nothing secret is stored.

    Args:
      path: the file.
      offline: never ask a server.

    Raises:
      FileNotFoundError: offline without the file.
      ValueError: no line is one of a replay file.

    Example:
      >>> import os, tempfile
      >>> replay = Replay(os.path.join(tempfile.mkdtemp(), "answers.jsonl"))
      >>> replay.put({"prompt": "2+2="}, {"choices": [{"text": " 4"}]})
      >>> Replay(replay.path, offline=True).get({"prompt": "2+2="})
      {'choices': [{'text': ' 4'}]}
    """

    def __init__(self, path: str | Path, offline: bool = False):
        self.path, self.offline = Path(path).expanduser(), offline
        self._lock, self._damaged = threading.Lock(), list[str]()
        if offline and not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no replay file; run once online to make it")
        self._answers = self._read() if self.path.is_file() else {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Json) -> Json | None:
        """Looks up the answer to an equal earlier request.

        Args:
          request: the body of a request, an object of JSON.

        Returns:
          The answer; None if there is none.

        Raises:
          ValueError: there is none, offline.
        """
        answer = self._answers.get(_key(request))
        if answer is None and self.offline:
            lost = f" (of its lines {len(self._damaged)} are damaged)" if self._damaged else ""
            raise ValueError(
                f"{self.path} has no answer to this request{lost}; run online, or with the settings it was made with"
            )
        return answer

    def put(self, request: Json, answer: Json) -> None:
        """Keeps an answer, in memory and at the end of the file.

        Args:
          request: the body of a request.
          answer: what the server answered.
        """
        key = _key(request)
        with self._lock:
            self._answers[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(checksums.seal(json.dumps({"key": key, "answer": answer})) + "\n")

    def _read(self) -> dict[str, Json]:
        """All whole lines; the file is left ending after the last of them, so that appending stays safe."""
        text = self.path.read_bytes()
        lines = text.split(b"\n")
        found: dict[str, Json] = {}
        kept = list[bytes]()
        for number, line in enumerate(lines, 1):
            try:
                key, answer = _row(line)
                found[key] = answer
                kept.append(line + b"\n")
            except ValueError as error:
                if line.strip() and number < len(lines):
                    self._damaged.append(f"{self.path}:{number} is damaged ({error})")
        if not found and text.strip() and (self._damaged or not _begun(text)):
            raise ValueError(f"{self.path}:1: no line of a replay file; give another path")
        if self._damaged:
            again = "their requests have no answer" if self.offline else "their requests are sent again"
            more = f" and {len(self._damaged) - 1} more lines" if len(self._damaged) > 1 else ""
            warnings.warn(f"{self._damaged[0]}{more}; {again}", stacklevel=4)
        if not self.offline:
            self._leave(b"".join(kept), text)
        return found

    def _leave(self, kept: bytes, text: bytes) -> None:
        """Takes everything out of the file but what is kept of it; an end that is cut off is not written again."""
        if kept != text and text.startswith(kept):
            with self.path.open("r+b") as file:
                file.truncate(len(kept))
        elif kept != text:
            with atomic(self.path) as file:
                file.write(kept)


def _row(line: bytes) -> tuple[str, Json]:
    """The key and the answer of a line."""
    row = checksums.unseal(line)
    key, answer = row.get("key"), row.get("answer")
    if not isinstance(key, str) or not isinstance(answer, dict):
        raise ValueError("it has no key or no answer")
    return key, answer


def _begun(text: bytes) -> bool:
    """Whether a text without a line end is the beginning of a line of a replay file."""
    return any(start.startswith(text[: len(start)]) for start in BEGINNINGS)


def _key(request: Json) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
