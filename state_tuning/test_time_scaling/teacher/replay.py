"""A file of requests and their answers, so that a run can be repeated without the server that gave them."""

import hashlib
import json
import threading
from pathlib import Path

from state_tuning.test_time_scaling.teacher.json_answer import Json

BEGINNING = b'{"key": "'
"""Of every line."""


class Replay:
    """Answers by request, one JSON line each, written as they come; a line cut off by a crash is dropped.

    The key is the request's content, not the server's address; nothing secret is stored.

    Args:
      path: the file.
      offline: never ask a server.

    Raises:
      FileNotFoundError: offline without the file.
      ValueError: a line that is not of a replay file.
    """

    def __init__(self, path: str | Path, offline: bool = False):
        self.path, self.offline = Path(path).expanduser(), offline
        self._lock = threading.Lock()
        if offline and not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no replay file; run once online to make it")
        self._answers = self._read() if self.path.is_file() else {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Json) -> Json | None:
        """Returns the answer to an equal earlier request, None if there is none.

        Raises:
          ValueError: there is none, offline.
        """
        answer = self._answers.get(_key(request))
        if answer is None and self.offline:
            raise ValueError(
                f"{self.path} has no answer to this request; run online, or with the settings it was made with"
            )
        return answer

    def put(self, request: Json, answer: Json) -> None:
        """Keeps an answer, in memory and at the end of the file."""
        key = _key(request)
        with self._lock:
            self._answers[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")

    def _read(self) -> dict[str, Json]:
        """All whole lines; the file is left ending after the last of them, so that appending stays safe."""
        text = self.path.read_bytes()
        lines = text.split(b"\n")
        found: dict[str, Json] = {}
        kept = text
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                found[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                if number < len(lines) or not BEGINNING.startswith(line[: len(BEGINNING)]):
                    raise ValueError(f"{self.path}:{number}: no line of a replay file; give another path") from None
                kept = text.removesuffix(line)
        if not self.offline and (kept != text or kept[-1:] not in (b"", b"\n")):
            self._end_after(kept)
        return found

    def _end_after(self, kept: bytes) -> None:
        """Cut the file after what is kept of it, and end its last line; what is kept is not written again."""
        with self.path.open("r+b") as file:
            file.truncate(len(kept))
            file.seek(len(kept))
            file.write(b"" if kept.endswith(b"\n") else b"\n")


def _key(request: Json) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
