"""From a wish to generations, and from their results to what is kept: sessions, responses, states of clients."""

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from experiments.serve.conversations import Conversation, Conversations, Record
from experiments.serve.errors import ApiError, invalid
from experiments.serve.service import Service, Start
from experiments.serve.state_files import to_bytes
from experiments.serve.wishes import SEEDS, Wish
from rwkv7_jax.inference.requests import Request as Generation
from rwkv7_jax.inference.requests import Result


class Plan(NamedTuple):
    """What is generated for a request."""

    wish: Wish
    start: Start
    prompts: list[tuple[int, ...]]
    generations: list[Generation]
    """`wish.n` for each prompt, one after another."""

    def prompt_of(self, index: int) -> tuple[int, ...]:
        """The prompt of a generation."""
        return self.prompts[index // self.wish.n]


def plan(
    service: Service, wish: Wish, start: Start, prompts: Sequence[tuple[int, ...]], *, echo: bool = False, keep: bool
) -> Plan:
    """Plans the generations; choice i of a prompt has the seed `wish.seed + i`.

    Raises:
      ApiError: a 400; they are too many.
    """
    count = len(prompts) * wish.n
    if count > service.limits.max_choices:
        most = service.limits.max_choices
        raise invalid("n", f"{count} answers to one request; this server gives {most} at most")
    deadline = time.monotonic() + service.limits.timeout
    generations = [
        Generation(
            tokens=tokens,
            sampling=wish.sampling,
            state=start.state,
            seed=(wish.seed + choice) % SEEDS,
            stop=wish.stop,
            logprobs=wish.logprobs,
            echo_logprobs=echo and wish.logprobs is not None,
            keep_state=keep,
            deadline=deadline,
        )
        for tokens in prompts
        for choice in range(wish.n)
    ]
    return Plan(wish, start, list(prompts), generations)


@contextlib.asynccontextmanager
async def continued(conversations: Conversations, name: str) -> AsyncIterator[Conversation | None]:
    """Holds a conversation that exists or will, so that no other request goes on with it; gives it or None."""
    conversations.begin(name)
    try:
        yield await asyncio.to_thread(conversations.read, name)
    finally:
        conversations.end(name)


async def started(service: Service, wish: Wish, stack: contextlib.AsyncExitStack) -> tuple[Wish, Start]:
    """Where an answer begins: at the request's session, if that is there, or at its state.

    Returns:
      (the wish, with the model that the session began with; the start). `stack` holds the session.

    Raises:
      ApiError: the session or the state cannot be used, or the session began from another state.
    """
    if wish.session is None:
        return wish, await service.start(wish.source)
    found = await stack.enter_async_context(continued(service.sessions, wish.session))
    if found is None:
        return wish, await service.start(wish.source)
    record = found.record
    if wish.source is not None and wish.source.identity not in (record.source, "none"):
        raise invalid("session", f"the session {wish.session!r} was begun with another state; take a new name")
    start = Start(found.state, record.source, record.tokens, record.answers)
    return dataclasses.replace(wish, model=record.model), start


def after(plan: Plan, index: int, result: Result) -> Conversation:
    """The conversation after a generation.

    Raises:
      ApiError: the state is not there.
    """
    if result.state is None:
        raise ApiError(500, "the state after the answer is not known")
    tokens = plan.start.tokens + len(plan.prompt_of(index)) + len(result.tokens)
    record = Record(plan.wish.model, plan.start.source, tokens, plan.start.answers + 1)
    return Conversation(result.state, record)


async def kept(service: Service, plan: Plan, index: int, result: Result) -> dict[str, object]:
    """Keeps what the request wants kept; returns the fields of the answer that tell of it.

    Raises:
      ApiError: the disk does not take it.
    """
    wish = plan.wish
    if wish.session is None and not wish.return_state:
        return {}
    conversation, told = after(plan, index, result), dict[str, object]()
    if wish.session is not None:
        await asyncio.to_thread(service.sessions.write, wish.session, conversation)
        record = conversation.record
        told["session"] = {"id": wish.session, "tokens": record.tokens, "answers": record.answers}
    if wish.return_state:
        data = await asyncio.to_thread(to_bytes, service.kept(conversation, "conversation"))
        told["state"] = base64.b64encode(data).decode()
    return told


async def kept_response(service: Service, plan: Plan, result: Result, name: str) -> None:
    """Keeps a response, to be continued by its name.

    Raises:
      ApiError: the disk does not take it.
    """
    await asyncio.to_thread(service.responses.write, name, after(plan, 0, result))


def usage(plan: Plan, results: Sequence[Result]) -> dict[str, object]:
    """The numbers of tokens; a prompt counts once, however many answers it has."""
    prompt = sum(map(len, plan.prompts))
    answer = sum(len(result.tokens) for result in results)
    cached = sum(result.cached_tokens for result in results[:: plan.wish.n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings(results: Sequence[Result]) -> dict[str, object]:
    """Seconds, and tokens a second after the first."""
    first, total = min(it.first_token_s for it in results), max(it.total_s for it in results)
    tokens = sum(len(it.tokens) for it in results)
    later = tokens - len(results)
    rate = later / (total - first) if later > 0 and total > first else None
    return {"first_token_s": first, "total_s": total, "tokens_per_second": rate}
