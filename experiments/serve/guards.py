"""What a request passes before it is read: its host, its origin, its key, and the size and speed of its body."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from experiments.config.serve import LOOPBACK, NetworkConfig
from experiments.serve.errors import ApiError

OPEN = ("/", "/health", "/healthz")
"""Paths that need no key; and everything below /page/."""
SLOWEST = 256 * 1024
LARGE = 64 * 1024
"""Bytes of a body from which on JSON is parsed beside the event loop."""


def error_response(error: ApiError) -> JSONResponse:
    """The answer that tells an error."""
    return JSONResponse(error.body, error.status, error.headers)


class Guard:
    """Refuses requests of other hosts, other pages and without the key, before anything of them is read.

    A page on the web can make a browser send requests to a server on loopback. Its host name (DNS rebinding) or its
    origin gives it away.
    """

    def __init__(self, app: ASGIApp, network: NetworkConfig, key: str | None, closing: Callable[[], bool]):
        self._app, self._key, self._closing = app, None if key is None else key.encode(), closing
        self._hosts = {*LOOPBACK, network.host, *network.allow_host} if network.on_loopback else None
        self._origins = frozenset(network.cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise ApiError(421, "this host name is not served; start the server with --allow_host NAME to allow it")
        origin = headers.get("origin")
        if origin and origin not in self._origins and urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(403, "this origin is not allowed; start the server with --cors ORIGIN to allow it")
        if method == "OPTIONS" or path in OPEN or path.startswith("/page/"):
            return
        if self._key is not None and not _has_key(headers, self._key):
            raise ApiError(401, "no API key, or a wrong one; send Authorization: Bearer KEY", code="invalid_api_key")
        if self._closing():
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry=5)


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _has_key(headers: Headers, key: bytes) -> bool:
    kind, _, given = headers.get("authorization", "").partition(" ")
    given = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), key)


async def body(request: Request, most: int, seconds: float) -> bytes:
    """Reads a request's body.

    Args:
      request: of which nothing was read.
      most: bytes.
      seconds: until the first byte; large bodies have more, at `SLOWEST` bytes a second.

    Raises:
      ApiError: it is larger (413), or comes too slowly (408).
      ClientDisconnect: the client has gone.
    """
    too_large = ApiError(413, f"the body is larger than {most} bytes, the limit of this server", code="body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
        raise too_large
    parts, size, begun = [], 0, asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(seconds) as limit:
            async for part in request.stream():
                size += len(part)
                limit.reschedule(begun + seconds + size / SLOWEST)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, "the body came too slowly", code="body_too_slow") from None
    return b"".join(parts)


async def json_body(request: Request, most: int, seconds: float) -> object:
    """Reads a request's body as JSON.

    Raises:
      ApiError: as `body`, and a 400 for what is not JSON.
    """
    data = await body(request, most, seconds)
    parse: Callable[[bytes], Awaitable[object]] = _beside if len(data) > LARGE else _here
    try:
        return await parse(data)
    except RecursionError:
        raise ApiError(400, "the body is not JSON: it is nested too deep", code="bad_json") from None
    except ValueError as error:
        told = (
            str(error) if isinstance(error, json.JSONDecodeError) else "it is not UTF-8 text, or has too long a number"
        )
        raise ApiError(400, f"the body is not JSON: {told}", code="bad_json") from None


async def _here(data: bytes) -> object:
    return _parsed(data)


async def _beside(data: bytes) -> object:
    return await asyncio.to_thread(_parsed, data)


def _parsed(data: bytes) -> object:
    return json.loads(data, parse_constant=_refuse)


def _refuse(word: str) -> object:
    raise json.JSONDecodeError(f"{word} is not JSON", word, 0)
