"""/v1/chat/completions: the next answer in a conversation."""

import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from experiments.serve import messages, plans, wishes
from experiments.serve.answers import Answers
from experiments.serve.dates import now
from experiments.serve.errors import invalid
from experiments.serve.fields import Fields
from experiments.serve.plans import Plan
from experiments.serve.scores import chat_logprobs
from experiments.serve.service import Service
from experiments.serve.thinking import Parts, ThoughtSplitter
from experiments.serve.wire import DONE, EventStream, Json, event
from rwkv7_jax.generation.chat_template import STOPS
from rwkv7_jax.inference.requests import Piece, Result

LENGTHS = ("max_completion_tokens", "max_tokens")


async def chat(service: Service, table: object, request: Request) -> Response:
    """Answers a request whose body is `table`."""
    fields = Fields(table)
    wish = wishes.read(fields, service.name, service.limits, LENGTHS, service.limits.max_tokens)
    told, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, wishes.MOST_LOGPROBS)
    if top is not None and not told:
        raise invalid("top_logprobs", "goes with logprobs=true")
    found, how = messages.messages(fields.get("messages"), "messages"), messages.think(fields)
    _text_alone(fields.get("response_format"), "response_format")
    fields.finish(wishes.HARMLESS)
    if wish.sampling.max_new_tokens < 1:
        raise invalid("max_tokens", "must be at least 1")
    wish = dataclasses.replace(wish.with_logprobs((top or 0) if told else None), stop=(*wish.stop, *STOPS))
    async with contextlib.AsyncExitStack() as stack:
        wish, start = await plans.started(service, wish, stack)
        prompt = await messages.prompt(service, found, how, start, "messages")
        tokens = await service.encode(prompt.text, "messages", start)
        keep = wish.session is not None or wish.return_state
        plan = plans.plan(service, wish, start, [tokens], keep=keep)
        answers = await Answers.begin(service, plan.generations)
        stack.callback(answers.cancel)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": now(), "model": wish.model}
        if wish.stream:
            events = _stream(service, plan, answers, head, prompt.opening)
            return EventStream(request, events, stack.pop_all(), service.limits.timeout)
        results = await answers.results(request)
        choices = [await _choice(service, plan, index, it, prompt.opening) for index, it in enumerate(results)]
        extra = {"usage": plans.usage(plan, results), "seed": wish.seed, "timings": plans.timings(results)}
        return Json({**head, "object": "chat.completion", "choices": choices, **extra})


def _text_alone(value: object, field: str) -> None:
    """Refuses formats of answers other than text."""
    if value is not None and Fields(value, field).text("type") != "text":
        raise invalid(f"{field}.type", "only text is written", "unsupported_parameter")


def split(text: str, opening: str) -> Parts:
    """The thoughts and the words of a whole answer."""
    splitter = ThoughtSplitter(opening)
    splitter.push(text)
    splitter.finish()
    return Parts(splitter.content, splitter.reasoning)


async def _choice(service: Service, plan: Plan, index: int, result: Result, opening: str) -> dict[str, object]:
    told = await plans.kept(service, plan, index, result)
    parts = split(result.text, opening)
    message = {"role": "assistant", "content": parts.content, "refusal": None}
    if parts.reasoning:
        message["reasoning_content"] = parts.reasoning
    scores = None
    if plan.wish.logprobs is not None:
        scores = chat_logprobs(result.logprobs or [], plan.wish.logprobs, service.speller)
    reason = result.finish_reason
    return {"index": index, "message": message, "logprobs": scores, "finish_reason": reason, **told}


def _delta(parts: Parts) -> dict[str, str]:
    """What is new, without what is empty."""
    named = {"content": parts.content, "reasoning_content": parts.reasoning}
    return {name: text for name, text in named.items() if text}


async def _stream(
    service: Service, plan: Plan, answers: Answers, head: dict[str, object], opening: str
) -> AsyncGenerator[str, None]:
    splitters = [ThoughtSplitter(opening) for _ in plan.generations]
    results: dict[int, Result] = {}
    fields = {**head, "object": "chat.completion.chunk"}
    silent: dict[str, object] = {"usage": None} if plan.wish.usage else {}

    def chunk(index: int, delta: object, **more: object) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return event({**fields, "choices": [choice], **silent})

    for index in range(len(splitters)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, found in answers.events():
        if isinstance(found, Piece):
            delta, scored = _delta(splitters[index].push(found.text)), {}
            if plan.wish.logprobs is not None and found.logprobs:
                scored = {"logprobs": chat_logprobs(found.logprobs, plan.wish.logprobs, service.speller)}
            if delta or scored:
                yield chunk(index, delta, **scored)
            continue
        results[index] = found
        if rest := _delta(splitters[index].finish()):
            yield chunk(index, rest)
        told = await plans.kept(service, plan, index, found)
        yield chunk(index, {}, finish_reason=found.finish_reason, **told)
    if plan.wish.usage:
        ordered = [results[index] for index in sorted(results)]
        extra = {"usage": plans.usage(plan, ordered), "seed": plan.wish.seed, "timings": plans.timings(ordered)}
        yield event({**fields, "choices": [], **extra})
    yield DONE
