"""One POST over HTTP or HTTPS, through a proxy if the environment names one, within one deadline and one size.

`timeout` of the standard library bounds each wait for bytes. Here the name's resolution, connecting, the handshake,
sending, interim answers, headers, chunks and trailers all end at the same moment, and all bytes that come are counted.
"""

import email.message
import functools
import http.client
import io
import queue
import socket
import ssl
import threading
import time
import urllib.request
from typing import NamedTuple

from state_tuning.test_time_scaling.teacher.json_answer import UnusableAnswer

LONGEST_BODY = 4 * 2**20
"""Bytes of an answer."""
LONGEST_MESSAGE = 64 * 1024
"""Bytes that are read of the message of a refusal."""
OVERHEAD = 2**20
"""Bytes that headers, chunk sizes and interim answers may take."""
PIECE = 16 * 1024
"""Bytes sent or read at once."""
DAY = 86400.0
"""Seconds; sockets take no wait of any length."""
CUT_OFF = b"its message is cut off"


class Reply(NamedTuple):
    """What a server answers, whatever its status."""

    status: int
    headers: email.message.Message
    body: bytes


def post(url: str, body: bytes, headers: dict[str, str], seconds: float) -> Reply:
    """Returns the answer; a refusal counts as one even if its message is cut off.

    Raises:
      UnusableAnswer: it is too long, or compressed.
      OSError, http.client.HTTPException, ValueError: there is none; TimeoutError after `seconds`.
    """
    request = urllib.request.Request(url, body, headers)
    with _opener().open(request, timeout=seconds) as response:
        found = 200 <= response.status < 300
        try:
            return Reply(response.status, response.headers, _read(response) if found else _message(response))
        except (OSError, http.client.HTTPException, UnusableAnswer):
            if found:
                raise
            return Reply(response.status, response.headers, CUT_OFF)


def _read(response: http.client.HTTPResponse) -> bytes:
    """The whole body."""
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnusableAnswer("the answer is compressed, which was not asked for; turn that off in the server or proxy")
    body = _first_bytes(response, LONGEST_BODY)
    if len(body) > LONGEST_BODY:
        raise UnusableAnswer(f"the answer is longer than {LONGEST_BODY >> 20} MB")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return body


def _message(response: http.client.HTTPResponse) -> bytes:
    """The beginning of a refusal's body."""
    body = _first_bytes(response, LONGEST_MESSAGE)
    return CUT_OFF if response.length and len(body) <= LONGEST_MESSAGE else body[:LONGEST_MESSAGE]


def _first_bytes(response: http.client.HTTPResponse, limit: int) -> bytes:
    """The body up to its end, or to a piece beyond `limit`."""
    found = bytearray()
    while len(found) <= limit and (piece := response.read1(PIECE)):
        found += piece
    return bytes(found)


def _left(deadline: float) -> float:
    """Seconds up to a deadline. Raises: TimeoutError if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return min(seconds, DAY)


class _Incoming(io.RawIOBase):
    """What comes through a socket, up to a deadline and a number of bytes."""

    def __init__(self, sock: socket.socket, deadline: float):
        self._raw, self._sock, self._deadline = sock.makefile("rb", buffering=0), sock, deadline
        self._room = LONGEST_BODY + OVERHEAD

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer) -> int | None:
        """Reads once. Raises: TimeoutError at the deadline, UnusableAnswer after too many bytes."""
        self._sock.settimeout(_left(self._deadline))
        count = self._raw.readinto(buffer)
        self._sock.settimeout(_left(self._deadline))
        self._room -= count or 0
        if self._room < 0:
            raise UnusableAnswer(f"the answer is longer than {LONGEST_BODY >> 20} MB")
        return count

    def close(self) -> None:
        """Closes the socket's file."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args, deadline: float, **options):
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Incoming(sock, deadline))


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args, timeout: float = DAY, **options):
        super().__init__(*args, timeout=timeout, **options)
        self.deadline = time.monotonic() + timeout
        self.response_class = functools.partial(_Response, deadline=self.deadline)  # pyright: ignore
        self._create_connection = self._dial

    def send(self, data: bytes) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sends bytes, piece by piece."""
        for begin in range(0, len(data), PIECE):
            if self.sock is not None:
                self.sock.settimeout(_left(self.deadline))
            super().send(data[begin : begin + PIECE])

    def _dial(self, address: tuple[str, int], *_: object) -> socket.socket:
        """A connection to the first address of a host that takes one; they share the time that is left."""
        found, problem = _resolved(*address, self.deadline), OSError("the host has no address")
        for position, (family, kind, protocol, _, where) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(self.deadline) / (len(found) - position))
                sock.connect(where)
                sock.settimeout(_left(self.deadline))
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


def _resolved(host: str, port: int, deadline: float) -> list:
    """Addresses of a host. The system's resolver knows no deadline, so that it is asked in a thread of its own."""
    found: queue.SimpleQueue[list | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            found.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = found.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a connection with a deadline."""
        return self.do_open(_Connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a connection with a deadline."""
        return self.do_open(_SecureConnection, req, context=_certificates())


class _AsTheyAre(urllib.request.HTTPErrorProcessor):
    """Redirects and refusals come back like any answer."""

    def http_response(self, request: object, response: object) -> object:
        """Returns the response as it is."""
        return response

    https_response = http_response


@functools.cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_AsTheyAre, _Handler, _SecureHandler)
