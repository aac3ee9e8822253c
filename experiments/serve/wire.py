"""How answers go over the wire: JSON, and server-sent events that end when the client goes away.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from experiments.reporting.json_text import json_text
from experiments.serve.answers import gone
from experiments.serve.errors import ApiError

LOG = logging.getLogger("rwkv7.serve")
DONE = "data: [DONE]\n\n"


def event(value: object, name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json_text(value, ensure_ascii=False)}\n\n"


def told(error: Exception) -> ApiError:
    """What a client is told of any error; the log has the rest."""
    if isinstance(error, ApiError):
        return error
    LOG.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


class Json(Response):
    """A JSON object; numbers that are not finite become null."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The bytes of the body."""
        return json_text(content, ensure_ascii=False).encode()


class EventStream(Response):
    """Sends events as they come. Whatever ends it, the client or an error, what `stack` holds is released."""

    def __init__(
        self, request: Request, events: AsyncGenerator[str, None], stack: contextlib.AsyncExitStack, stalled: float
    ):
        """`stalled` is the number of seconds after which a client that reads nothing is given up."""
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._request, self._events, self._stack, self._stalled = request, events, stack, stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them all."""
        work, watch = asyncio.create_task(self._send(send)), asyncio.create_task(gone(self._request))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
            await self._events.aclose()
            await self._stack.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for text in self._events:
                async with asyncio.timeout(self._stalled):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except TimeoutError:
            LOG.warning("a client reads nothing and is given up")
            return
        except Exception as error:
            await send({"type": "http.response.body", "body": event(told(error).body).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
