"""JSON over HTTP with time-outs, retries with backoff, and `Retry-After`; errors in one line."""

import email.utils
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
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
    """POSTs to one address. Raises: ValueError unless that is http or https."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int, backoff: float):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"teacher address {url!r}: write http://HOST/v1 or https://HOST/v1")
        if timeout <= 0 or retries < 0 or backoff < 0:
            raise ValueError("timeout must be above 0, retries and backoff not negative")
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def post(self, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> tuple[dict[str, Any], T]:
        """(answer, read(answer)). `read` raises MalformedAnswer for an answer to be asked for again.

        Raises: TeacherError after the last attempt, or at once for what no attempt can mend (401, 404, ...).
        """
        for attempt in range(self.retries + 1):
            try:
                answer = self._attempt(body)
                return answer, read(answer)
            except (_Passing, MalformedAnswer) as problem:
                if attempt == self.retries:
                    kind = "malformed answer, " if isinstance(problem, MalformedAnswer) else ""
                    raise TeacherError(f"{self.url}: {kind}{problem}; {attempt + 1} attempts, given up") from problem
                wait = getattr(problem, "wait", None)
                time.sleep(self.backoff * 2**attempt if wait is None else wait)
        raise AssertionError("the loop returns or raises")

    def _attempt(self, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Passing(
                "no answer in time" if isinstance(reason, TimeoutError) else str(reason) or "connection lost"
            ) from error
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise MalformedAnswer(f"not JSON: {_short(text)}") from error
        if not isinstance(answer, dict):
            raise MalformedAnswer(f"a JSON {type(answer).__name__} instead of an object")
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        message = f"HTTP {error.code}, {_short(error.read())}"
        if error.code not in AGAIN and error.code < 500:
            return TeacherError(f"{self.url}: {message}; check address, model name and key")
        wait = retry_after(error.headers.get("Retry-After"), time.time())
        if wait is not None and wait > LONGEST_WAIT:
            return TeacherError(f"{self.url}: {message}; it asks to wait {wait:.0f} s, try again later")
        return _Passing(message, wait)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header, a number or a date; None without a readable one."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _short(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())[:200] or "empty"
