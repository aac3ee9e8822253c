"""A file of requests and their answers, so that a run can be repeated without the server that gave them."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


class Replay:
    """Answers by request, one JSON line each, written as they come; a line cut off by a crash is dropped.

    offline: never ask a server. The key is the request's content, not the server's address; nothing secret is stored.
    Raises: FileNotFoundError offline without the file, ValueError for a line that is none of ours.
    """

    def __init__(self, path: str | Path, offline: bool = False):
        self.path, self.offline = Path(path).expanduser(), offline
        self._lock = threading.Lock()
        if offline and not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no replay file; run once online to make it")
        self._answers = self._read() if self.path.is_file() else {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to an equal earlier request, None if there is none.

        Raises: ValueError if there is none, offline.
        """
        answer = self._answers.get(_key(request))
        if answer is None and self.offline:
            raise ValueError(
                f"{self.path} has no answer to this request; run online, or with the settings it was made with"
            )
        return answer

    def put(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer, in memory and at the end of the file."""
        key = _key(request)
        with self._lock:
            self._answers[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        """All whole lines; the file is rewritten without a cut-off last one, so that appending stays safe."""
        lines = self.path.read_text(encoding="utf-8").split("\n")
        found: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                found[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    raise ValueError(f"{self.path}:{number}: no line of a replay file; give another path") from None
                self.path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
        return found


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
