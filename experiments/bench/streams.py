"""Servers as processes, and clients that read answers as they come, by the standard library alone."""

import http.client
import json
import re
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from experiments.reporting.json_text import json_text

PATIENCE = 600.0
"""Seconds that a client waits for the next part of an answer."""
Table = Mapping[str, object]


class Answer(NamedTuple):
    """What a client saw of one streamed answer."""

    first_s: float
    """Seconds from the request to the first text; to the end, if no token gave any."""
    whole_s: float
    tokens: int


class Served:
    """A process that serves a model, from the line that tells its address on.

    Args:
      words: its command line.

    Raises:
      RuntimeError: the process ended; with its last line of error.
    """

    def __init__(self, words: Sequence[str]):
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            self.model, self.address = self._told()
        except BaseException:
            self.close()
            raise

    def _told(self) -> tuple[str, str]:
        """(the model's name, the address); other output is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.match(r"serving (\S+) at (http://\S+) ", line):
                return found[1], found[2]
        status = self._process.wait()
        self._errors.seek(0)
        last = ([line for line in self._errors.read().splitlines() if line.strip()] or ["ended without a message"])[-1]
        raise RuntimeError(f"ended by signal {-status}" if status < 0 else last.strip()[:200])

    def ask(self, table: Table) -> Answer:
        """Sends a request of `/v1/completions` and reads its answer as it comes.

        Raises:
          RuntimeError: another answer than was asked for.
          OSError: no connection.
        """
        begun, first, usage = time.perf_counter(), None, {}
        wanted = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        for line in self._sent({**wanted, **table}):
            if not line.startswith(b"data: {"):
                continue
            part = json.loads(line.removeprefix(b"data: "))
            if "error" in part:
                raise RuntimeError(f"an answer breaks off: {part['error']!r:.200}")
            if first is None and any(choice.get("text") for choice in part.get("choices", ())):
                first = time.perf_counter() - begun
            usage = part.get("usage") or usage
        whole = time.perf_counter() - begun
        if not usage:
            raise RuntimeError("an answer tells no number of tokens")
        return Answer(whole if first is None else first, whole, usage["completion_tokens"])

    def burst(self, tables: Sequence[Table]) -> tuple[list[Answer], float]:
        """Sends requests at once, each by its own client; returns the answers, and the seconds till the last was whole.

        Raises:
          RuntimeError, OSError: as `ask`.
        """
        with ThreadPoolExecutor(len(tables)) as clients:
            begun = time.perf_counter()
            answers = list(clients.map(self.ask, tables))
            return answers, time.perf_counter() - begun

    def logprobs(self, table: Table) -> list[float]:
        """Sends a request and returns the log-probabilities of the tokens that were chosen.

        Raises:
          RuntimeError: another answer than was asked for.
          OSError: no connection.
        """
        reply = json.loads(b"".join(self._sent({"model": self.model, "logprobs": 1, **table})))
        found = reply["choices"][0]["logprobs"]
        return found["token_logprobs"] if "token_logprobs" in found else [it["logprob"] for it in found["content"]]

    def _sent(self, table: Table) -> Iterator[bytes]:
        """The lines of the answer to a request, as they come."""
        where = urllib.parse.urlsplit(self.address)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", "/v1/completions", json_text(table).encode(), headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise RuntimeError(f"answers {response.status}: {response.read(400)!r:.200}")
            yield from iter(response.readline, b"")
        finally:
            connection.close()

    def close(self) -> None:
        """Ends the process and closes its pipes."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
