"""Generations between the engine's thread and the event loop: begun together, read piece by piece, and cancelled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial

from starlette.requests import Request

from experiments.serve.errors import ApiError
from experiments.serve.service import Service
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.inference.requests import Event, Piece, QueueFull, Result, Ticket
from rwkv7_jax.inference.requests import Request as Generation

BUSY = 1
"""Seconds after which a refused client may try again."""
LONG = 4096
"""Tokens of a prompt that is handed over beside the event loop."""


class Answers:
    """Some generations that one request asked for; `begin` makes it."""

    def __init__(self, service: Service):
        self.service = service
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._tickets: list[Ticket] = []

    @classmethod
    async def begin(cls, service: Service, generations: Sequence[Generation]) -> "Answers":
        """Begins them all.

        Raises:
          ApiError: the queue is full (429), or one of them cannot be generated (400); then none is.
        """
        made = cls(service)
        heavy = any(one.state is not None or len(one.tokens) > LONG for one in generations)
        try:
            if heavy:  # states and prompts are hashed
                await asyncio.to_thread(made._submit, generations)
            else:
                made._submit(generations)
        except BaseException as error:
            made.cancel()
            if isinstance(error, QueueFull):
                raise ApiError(429, "too many requests wait; try again", code="queue_full", retry=BUSY) from None
            if isinstance(error, ValueError):
                raise ApiError(400, str(error)) from None
            if isinstance(error, RuntimeError):
                raise ApiError(503, "the server is not answering; it shuts down or has failed", retry=5) from error
            raise
        return made

    def _submit(self, generations: Sequence[Generation]) -> None:
        for index, generation in enumerate(generations):
            ticket = self.service.engine.submit(generation)
            self._tickets.append(ticket)
            ticket.on_event(partial(self._tell, index))

    def _tell(self, index: int, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def cancel(self) -> None:
        """Frees the slots of what still runs."""
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Piece | Result]]:
        """(number of the generation, a piece of it or its result), until all have ended.

        Raises:
          ApiError: one of them failed, was cancelled or took too long; the others are cancelled.
        """
        left = len(self._tickets)
        try:
            while left:
                index, event = await self._events.get()
                if isinstance(event, Exception):
                    raise _failure(event)
                if isinstance(event, Result):
                    left -= 1
                    self._count(event)
                    _check_end(event, self.service.limits.timeout)
                yield index, event
        finally:
            self.cancel()

    async def results(self, request: Request) -> list[Result]:
        """All results, in order; if the client goes away, all are cancelled.

        Raises:
          ApiError: as `events`.
          asyncio.CancelledError: the client has gone.
        """

        async def collect() -> dict[int, Result]:
            return {index: event async for index, event in self.events() if isinstance(event, Result)}

        work, watch = asyncio.create_task(collect()), asyncio.create_task(gone(request))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise asyncio.CancelledError
            found = await work
        finally:
            self.cancel()
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        return [found[index] for index in range(len(self._tickets))]

    def _count(self, result: Result) -> None:
        metrics = self.service.metrics
        metrics.count("rwkv7_answers_total", finish=result.finish_reason)
        metrics.count("rwkv7_prompt_tokens_total", result.prompt_tokens)
        metrics.count("rwkv7_cached_tokens_total", result.cached_tokens)
        metrics.count("rwkv7_generated_tokens_total", len(result.tokens))
        metrics.time("rwkv7_answer_seconds", result.total_s)
        metrics.time("rwkv7_first_token_seconds", result.first_token_s)


async def gone(request: Request) -> None:
    """Returns when the client closes its connection; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failure(error: Exception) -> Exception:
    """What a client is told of an error of the engine."""
    if isinstance(error, NonFiniteLogitsError):
        return ApiError(500, f"the answer failed: {error}", code="not_finite")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return error


def _check_end(result: Result, timeout: float) -> None:
    """Raises what a client is told of a generation that was ended early."""
    if result.finish_reason == "timeout":
        raise ApiError(504, f"the answer took longer than {timeout:g} seconds", code="timeout")
    if result.finish_reason == "cancelled":
        raise ApiError(503, "the server is shutting down", code="shutting_down", retry=5)
