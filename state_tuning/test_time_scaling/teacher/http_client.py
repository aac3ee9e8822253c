"""JSON over HTTP: attempts with backoff and `Retry-After` within one bound, and errors in one line without the key."""

import email.utils
import http.client
import json
import math
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable
from typing import TypeVar

from state_tuning.test_time_scaling.teacher import json_answer
from state_tuning.test_time_scaling.teacher.foreign_text import RUN, hidden, quoted
from state_tuning.test_time_scaling.teacher.json_answer import Json, MalformedAnswer, UnusableAnswer
from state_tuning.test_time_scaling.teacher.transport import Reply, post

T = TypeVar("T")
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is given up."""
AGAIN = (408, 409, 425, 429)


class TeacherError(ValueError):
    """The endpoint gave no usable answer; one line says which, why, and what to do."""


class _Passing(Exception):
    """A failure worth another attempt, and the seconds that the server asks to wait."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Client:
    """POSTs to one address; follows no redirect, which would take the key elsewhere.

    Raises:
      ValueError: an address that is not http or https, holds a password, or cannot be one.
    """

    def __init__(self, url: str, key: str | None, timeout: float, retries: int, backoff: float):
        problem = _problem(url)
        if problem:
            raise ValueError(f"teacher address {_shown(url)!r}: {problem}; write http://HOST/v1 or https://HOST/v1")
        if not 0 < timeout < math.inf or retries < 0 or not 0 <= backoff < math.inf:
            raise ValueError("timeout must be above 0, retries and backoff not negative")
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self._key = key or ""
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @property
    def longest(self) -> float:
        """Seconds that `post` takes at most: all attempts at their full time, and the backoff between them."""
        return (self.retries + 1) * self.timeout + self.backoff * (2**self.retries - 1)

    def post(self, body: Json, read: Callable[[Json], T]) -> tuple[Json, T]:
        """Returns (answer, read(answer)). `read` raises MalformedAnswer for an answer to be asked for again.

        The key is taken out of the answer, unless the request itself holds it.

        Raises:
          TeacherError: after the last attempt, or at once where no attempt can help (401, 404, UnusableAnswer, ...).
        """
        end = time.monotonic() + self.longest
        for attempt in range(self.retries + 1):
            try:
                answer = self._attempt(body, end)
                return answer, read(answer)
            except UnusableAnswer as problem:
                raise TeacherError(f"{_shown(self.url)}: {self._told(problem)}") from None
            except (_Passing, MalformedAnswer) as problem:
                kind = "malformed answer, " if isinstance(problem, MalformedAnswer) else ""
                why = f"{_shown(self.url)}: {kind}{self._told(problem)}"
                wait = getattr(problem, "wait", None)
                if attempt == self.retries:
                    raise TeacherError(f"{why}; {attempt + 1} attempts, given up") from None
                if wait is not None and wait > min(LONGEST_WAIT, end - time.monotonic()):
                    raise TeacherError(f"{why}; it asks to wait {wait:.0f} s, try again later") from None
                time.sleep(self.backoff * 2**attempt if wait is None else wait)
        raise AssertionError("the loop returns or raises")

    def _attempt(self, body: Json, end: float) -> Json:
        sent = json.dumps(body).encode()
        reply = self._exchange(sent, min(self.timeout, end - time.monotonic()))
        if not 200 <= reply.status < 300:
            raise self._refused(reply)
        answer = json_answer.parse(reply.body, "" if self._key.encode() in sent else self._key)
        fault = answer.get("error")
        if fault:
            message = fault.get("message", fault) if isinstance(fault, dict) else fault
            raise MalformedAnswer(f"the server says: {self._quoted(str(message))}")
        return answer

    def _exchange(self, body: bytes, seconds: float) -> Reply:
        try:
            if seconds <= 0:
                raise TimeoutError
            return post(self.url, body, self._headers, seconds)
        except UnusableAnswer:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Passing("no answer in time") from None
            if isinstance(reason, http.client.IncompleteRead):
                raise MalformedAnswer("it ends before its announced length") from None
            ours = isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError | http.client.HTTPException)
            told = str(reason) if ours else self._quoted(f"{type(reason).__name__}: {reason}")
            raise _Passing(told or "connection lost") from None

    def _quoted(self, text: str | bytes) -> str:
        return quoted(text, self._key) if text else "empty"

    def _told(self, problem: Exception) -> str:
        """An error's message; words of a local server's short key may be our own."""
        return hidden(str(problem), self._key) if len(self._key) >= RUN else str(problem)

    def _refused(self, reply: Reply) -> Exception:
        where, location = f"HTTP {reply.status}", reply.headers.get("Location")
        if 300 <= reply.status < 400 and location:
            return UnusableAnswer(f"{where} redirects to {self._quoted(_shown(location))}; give that address")
        text = self._quoted(reply.body)
        if reply.status not in AGAIN and reply.status < 500:
            return UnusableAnswer(f"{where}, {text}; check address, model name and key")
        return _Passing(f"{where}, {text}", retry_after(reply.headers.get("Retry-After"), time.time()))


def _problem(url: str) -> str | None:
    """What is wrong with an address."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return "host or port cannot be right"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "not http or https, or no host"
    if "@" in parts.netloc:
        return "user and password are not sent"
    if not url.isprintable() or " " in url or not (parts.path + parts.query).isascii():
        return "blanks, control characters or a path beyond ASCII"
    return None


def _shown(url: str) -> str:
    """An address as errors show it: without user and password."""
    return "...@" + url.rpartition("@")[2] if "@" in url else url


def retry_after(value: str | None, now: float) -> float | None:
    """Returns the seconds to wait by a `Retry-After` header, a number or a date; None without a readable one."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,12}(\.[0-9]*)?\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value[:100]).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
