"""/v1/responses: answers that are kept as states, so that the next request reads its new messages alone."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from experiments.serve import messages, plans, wishes
from experiments.serve.answers import Answers
from experiments.serve.chat import split
from experiments.serve.dates import now
from experiments.serve.errors import ApiError, invalid, shown
from experiments.serve.fields import Fields
from experiments.serve.messages import EFFORTS, Message, Think
from experiments.serve.names import checked_name
from experiments.serve.plans import Plan
from experiments.serve.service import Service, Start
from experiments.serve.thinking import Parts, ThoughtSplitter
from experiments.serve.wire import EventStream, Json, event
from rwkv7_jax.generation.chat_template import STOPS
from rwkv7_jax.inference.requests import Piece, Result

HARMLESS = (*wishes.HARMLESS, "truncation", "background", "max_tool_calls", "include", "top_logprobs", "n")


class Reply(NamedTuple):
    """What an answer says of its request."""

    id: str
    created: int
    previous: str | None
    instructions: str | None
    metadata: object
    store: bool

    def body(self, plan: Plan, status: str, **more: object) -> dict[str, object]:
        """The object `response`; more: what is known of the answer."""
        sampling = plan.wish.sampling
        whole = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None}
        whole |= {"incomplete_details": None, "instructions": self.instructions, "metadata": self.metadata}
        whole |= {
            "model": plan.wish.model,
            "output": [],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
        }
        whole |= {"previous_response_id": self.previous, "store": self.store, "temperature": sampling.temperature}
        whole |= {"top_p": sampling.top_p, "max_output_tokens": sampling.max_new_tokens, "truncation": "disabled"}
        return {**whole, "text": {"format": {"type": "text"}}, "usage": None, "seed": plan.wish.seed, **more}


async def respond(service: Service, table: object, request: Request) -> Response:
    """Answers a request whose body is `table`."""
    fields = Fields(table)
    wish = wishes.read(fields, service.name, service.limits, ("max_output_tokens",), service.limits.max_tokens)
    previous, store = fields.text("previous_response_id"), fields.flag("store")
    instructions, metadata = fields.text("instructions"), fields.get("metadata")
    found, how = _input(fields.get("input")), _think(fields)
    _check_text(fields.get("text"))
    fields.unsupported("conversation")
    fields.unsupported("prompt")
    fields.finish(HARMLESS)
    if wish.n > 1 or wish.session is not None:
        raise invalid("n" if wish.n > 1 else "session", "goes with /v1/chat/completions")
    if wish.sampling.max_new_tokens < 1:
        raise invalid("max_output_tokens", "must be at least 1")
    if instructions:
        found = [{"role": "system", "content": instructions}, *found]
    wish = dataclasses.replace(wish, stop=(*wish.stop, *STOPS))
    async with contextlib.AsyncExitStack() as stack:
        wish, start = await _started(service, wish, previous)
        prompt = await messages.prompt(service, found, how, start, "input")
        tokens = await service.encode(prompt.text, "input", start)
        keep = store is not False
        plan = plans.plan(service, wish, start, [tokens], keep=keep or wish.return_state)
        reply = Reply(f"resp_{secrets.token_hex(16)}", now(), previous, instructions, metadata or {}, keep)
        answers = await Answers.begin(service, plan.generations)
        stack.callback(answers.cancel)
        if wish.stream:
            events = _stream(service, plan, answers, reply, prompt.opening)
            return EventStream(request, events, stack.pop_all(), service.limits.timeout)
        (result,) = await answers.results(request)
        parts = split(result.text, prompt.opening)
        return Json(await _finished(service, plan, result, parts, reply))


def _input(given: object) -> list[Message]:
    """The field `input`: a text, or items of which messages are read."""
    if isinstance(given, str):
        return messages.messages([{"role": "user", "content": given}], "input")
    if given is None:
        raise invalid("input", "is missing; a text or a list of messages is wanted")
    for place, item in enumerate(given if isinstance(given, list) else []):
        if isinstance(item, dict) and item.get("type", "message") != "message":
            raise invalid(f"input[{place}].type", f"only messages are read, not {shown(item.get('type'))}")
    return messages.messages(given, "input")


def _think(fields: Fields) -> Think | None:
    given = fields.get("reasoning")
    if given is None:
        return messages.think(fields)
    effort = Fields(given, "reasoning").choice("effort", tuple(EFFORTS))
    return None if effort is None else EFFORTS[effort]


def _check_text(given: object) -> None:
    """Refuses formats of answers other than text."""
    form = None if given is None else Fields(given, "text").get("format")
    if form is not None and Fields(form, "text.format").text("type") != "text":
        raise invalid("text.format.type", "only text is written", "unsupported_parameter")


async def _started(service: Service, wish: wishes.Wish, previous: str | None) -> tuple[wishes.Wish, Start]:
    """Where the answer begins: after the previous response, or at the request's state."""
    if previous is None:
        return wish, await service.start(wish.source)
    checked_name("previous_response_id", previous)
    found = await asyncio.to_thread(service.responses.read, previous)
    if found is None:
        raise service.responses.missing(previous, "previous_response_id")
    record = found.record
    if wish.source is not None and wish.source.identity not in (record.source, "none"):
        raise invalid("previous_response_id", "that response was begun with another state")
    return dataclasses.replace(wish, model=record.model), Start(
        found.state, record.source, record.tokens, record.answers
    )


def _output(parts: Parts, reply: Reply, status: str) -> list[Mapping[str, object]]:
    """The items of a whole answer."""
    number = reply.id.removeprefix("resp_")
    content = {"type": "output_text", "text": parts.content, "annotations": [], "logprobs": []}
    message = {"id": f"msg_{number}", "type": "message", "status": status, "role": "assistant", "content": [content]}
    thoughts = [{"type": "reasoning_text", "text": parts.reasoning}]
    thinking = {"id": f"rs_{number}", "type": "reasoning", "summary": [], "content": thoughts, "status": status}
    return [message, thinking] if parts.reasoning else [message]


async def _finished(service: Service, plan: Plan, result: Result, parts: Parts, reply: Reply) -> dict[str, object]:
    """The whole response, once it is kept."""
    if reply.store:
        await plans.kept_response(service, plan, result, reply.id)
    told = await plans.kept(service, plan, 0, result)
    used = {
        "input_tokens": result.prompt_tokens,
        "input_tokens_details": {"cached_tokens": result.cached_tokens},
        "output_tokens": len(result.tokens),
        "output_tokens_details": {"reasoning_tokens": len(service.lm.encode(parts.reasoning))},
        "total_tokens": result.prompt_tokens + len(result.tokens),
    }
    cut = result.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    details = {"reason": "max_output_tokens"} if cut else None
    timings = plans.timings([result])
    output = _output(parts, reply, status)
    return reply.body(plan, status, incomplete_details=details, output=output, usage=used, timings=timings, **told)


class _Numbered:
    """Events with the numbers that they must have."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, kind: str, **fields: object) -> str:
        number, self._next = self._next, self._next + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


async def _stream(
    service: Service, plan: Plan, answers: Answers, reply: Reply, opening: str
) -> AsyncGenerator[str, None]:
    told, splitter, item = _Numbered(), ThoughtSplitter(opening), f"msg_{reply.id.removeprefix('resp_')}"
    yield told("response.created", response=reply.body(plan, "in_progress"))
    yield told("response.in_progress", response=reply.body(plan, "in_progress"))
    place = {"output_index": 0, "item_id": item}
    begun = {"id": item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    yield told("response.output_item.added", output_index=0, item=begun)
    yield told("response.content_part.added", **place, content_index=0, part=empty)
    result = None
    try:
        async for _, found in answers.events():
            parts = splitter.push(found.text) if isinstance(found, Piece) else splitter.finish()
            result = found if isinstance(found, Result) else None
            if parts.content:
                yield told("response.output_text.delta", **place, content_index=0, delta=parts.content, logprobs=[])
        assert result is not None
        whole = Parts(splitter.content, splitter.reasoning)
        body = await _finished(service, plan, result, whole, reply)
    except ApiError as error:
        failure = {"code": error.code or "server_error", "message": error.body["error"]["message"]}
        yield told("response.failed", response=reply.body(plan, "failed", error=failure))
        return
    status = str(body["status"])
    message = _output(whole._replace(reasoning=""), reply, status)[0]
    yield told("response.output_text.done", **place, content_index=0, text=whole.content, logprobs=[])
    yield told("response.content_part.done", **place, content_index=0, part={**empty, "text": whole.content})
    yield told("response.output_item.done", output_index=0, item=message)
    yield told(f"response.{status}", response=body)
