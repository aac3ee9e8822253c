"""JSON over HTTP with time-outs, retries with backoff, and `Retry-After`; errors in one line."""

import email.message
import email.utils
import functools
import http.client
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Json = dict[str, Any]
"""An object of JSON, as a server sends it."""
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is given up."""
AGAIN = (408, 409, 425, 429)


class TeacherError(ValueError):
    """The endpoint gave no usable answer; one line says which, why, and what to do."""


class MalformedAnswer(ValueError):
    """An answer that is not what was asked for."""


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
        if timeout <= 0 or retries < 0 or backoff < 0:
            raise ValueError("timeout must be above 0, retries and backoff not negative")
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def post(self, body: Json, read: Callable[[Json], T]) -> tuple[Json, T]:
        """Returns (answer, read(answer)). `read` raises MalformedAnswer for an answer to be asked for again.

        Raises:
          TeacherError: after the last attempt, or at once where no attempt can help (401, 404, ...).
        """
        for attempt in range(self.retries + 1):
            try:
                answer = self._attempt(body)
                return answer, read(answer)
            except (_Passing, MalformedAnswer) as problem:
                if attempt == self.retries:
                    kind = "malformed answer, " if isinstance(problem, MalformedAnswer) else ""
                    why = f"{kind}{_short(str(problem))}"
                    raise TeacherError(f"{_shown(self.url)}: {why}; {attempt + 1} attempts, given up") from problem
                wait = getattr(problem, "wait", None)
                time.sleep(self.backoff * 2**attempt if wait is None else wait)
        raise AssertionError("the loop returns or raises")

    def _attempt(self, body: Json) -> Json:
        status, headers, text = self._fetch(json.dumps(body).encode())
        if not 200 <= status < 300:
            raise self._refused(status, headers, _short(text))
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MalformedAnswer(f"not JSON: {_short(text)}") from error
        if not isinstance(answer, dict):
            raise MalformedAnswer(f"a JSON {type(answer).__name__} instead of an object")
        fault = answer.get("error")
        if fault:
            message = fault.get("message", fault) if isinstance(fault, dict) else fault
            raise MalformedAnswer(f"the server says: {_short(str(message))}")
        return answer

    def _fetch(self, body: bytes) -> tuple[int, email.message.Message, bytes]:
        """(status, headers, body) of the answer. A refusal counts as one even if its message is cut off."""
        deadline = time.monotonic() + self.timeout
        request = urllib.request.Request(self.url, body, self._headers)
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                try:
                    text = _read(response, deadline)
                except (OSError, http.client.HTTPException):
                    if 200 <= response.status < 300:
                        raise
                    text = b"its message is cut off"
                return response.status, response.headers, text
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise _Passing(
                "no answer in time" if isinstance(reason, TimeoutError) else str(reason) or "connection lost"
            ) from error

    def _refused(self, status: int, headers: email.message.Message, text: str) -> Exception:
        where, location = f"{_shown(self.url)}: HTTP {status}", headers.get("Location")
        if 300 <= status < 400 and location:
            return TeacherError(f"{where} redirects to {_short(_shown(location))}; give that address")
        if status not in AGAIN and status < 500:
            return TeacherError(f"{where}, {text}; check address, model name and key")
        wait = retry_after(headers.get("Retry-After"), time.time())
        if wait is not None and wait > LONGEST_WAIT:
            return TeacherError(f"{where}, {text}; it asks to wait {wait:.0f} s, try again later")
        return _Passing(f"HTTP {status}, {text}", wait)


class _AsTheyAre(urllib.request.HTTPErrorProcessor):
    """Redirects and refusals come back like any answer."""

    def http_response(self, request: object, response: object) -> object:
        """Returns the response as it is."""
        return response

    https_response = http_response


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_AsTheyAre)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, as far as it comes. Raises: TimeoutError for bytes that still come at the deadline."""
    pieces: list[bytes] = []
    while piece := response.read1(65536):
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(pieces)


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
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _short(text: str | bytes) -> str:
    """At most 200 characters in one line, which any terminal can print."""
    found = (text.encode(errors="replace") if isinstance(text, str) else text).decode(errors="replace")
    return " ".join(found.split())[:200] or "empty"
