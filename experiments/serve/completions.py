"""/v1/completions: text that goes on. Prompts are texts or token ids, one or several."""

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from experiments.serve import plans, wishes
from experiments.serve.answers import Answers
from experiments.serve.dates import now
from experiments.serve.errors import invalid, shown
from experiments.serve.fields import Fields, checked_text
from experiments.serve.plans import Plan
from experiments.serve.scores import Entry, answered, completion_logprobs, echoed
from experiments.serve.service import Service, Start
from experiments.serve.wire import DONE, EventStream, Json, event
from rwkv7_jax.inference.requests import Piece, Result

DEFAULT = 16
"""Tokens, as OpenAI's API has it."""
Prompt = str | tuple[int, ...]


class Head(NamedTuple):
    """What all parts of one answer begin with."""

    id: str
    created: int

    def fields(self, plan: Plan) -> dict[str, object]:
        """As JSON."""
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": plan.wish.model}


async def complete(service: Service, table: object, request: Request) -> Response:
    """Answers a request whose body is `table`."""
    fields = Fields(table)
    wish = wishes.read(fields, service.name, service.limits, ("max_tokens",), DEFAULT)
    logprobs = fields.whole("logprobs", 0, wishes.MOST_LOGPROBS)
    given, echo = prompts(fields.get("prompt"), service.lm.config.vocab_size), bool(fields.flag("echo"))
    fields.unsupported("suffix", "")
    fields.unsupported("best_of", 1, wish.n)
    fields.finish(wishes.HARMLESS)
    wish = wish.with_logprobs(logprobs)
    if len(given) > service.limits.max_choices:
        raise invalid("prompt", f"{len(given)} prompts; this server takes {service.limits.max_choices} at most")
    if wish.session is not None and len(given) > 1:
        raise invalid("prompt", "a session takes one prompt")
    if wish.stream and echo and logprobs is not None:
        raise invalid("echo", "cannot be streamed with logprobs")
    if wish.sampling.max_new_tokens == 0 and not echo:
        raise invalid("max_tokens", "0 goes with echo alone; ask for at least one token")
    async with contextlib.AsyncExitStack() as stack:
        wish, start = await plans.started(service, wish, stack)
        encoded = [await _encoded(service, prompt, start) for prompt in given]
        keep = wish.session is not None or wish.return_state
        plan = plans.plan(service, wish, start, encoded, echo=echo, keep=keep)
        answers = await Answers.begin(service, plan.generations)
        stack.callback(answers.cancel)
        head = Head(f"cmpl-{secrets.token_hex(12)}", now())
        texts = [_shown(service, prompt) for prompt in given] if echo else []
        if wish.stream:
            events = _stream(service, plan, answers, head, texts)
            return EventStream(request, events, stack.pop_all(), service.limits.timeout)
        results = await answers.results(request)
        choices = [await _choice(service, plan, index, it, texts) for index, it in enumerate(results)]
        extra = {"usage": plans.usage(plan, results), "seed": wish.seed, "timings": plans.timings(results)}
        return Json({**head.fields(plan), "choices": choices, **extra})


def prompts(given: object, vocab_size: int) -> list[Prompt]:
    """Reads the field `prompt`.

    Raises:
      ApiError: a 400; it is neither text nor token ids, nor a list of either.
    """
    if given is None:
        raise invalid("prompt", "is missing; a text or token ids are wanted")
    if isinstance(given, list) and given and all(map(_is_whole, given)):
        return [_ids(given, vocab_size)]
    if isinstance(given, list) and given:
        return [_prompt(one, f"prompt[{place}]", vocab_size) for place, one in enumerate(given)]
    return [_prompt(given, "prompt", vocab_size)]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _prompt(given: object, where: str, vocab_size: int) -> Prompt:
    if isinstance(given, str):
        return checked_text(where, given)
    if not isinstance(given, list) or not given or not all(map(_is_whole, given)):
        raise invalid(where, f"a text or a list of token ids is wanted, not {shown(given)}")
    return _ids(given, vocab_size)


def _ids(given: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    if wrong := [token for token in given if not 0 <= token < vocab_size]:
        raise invalid("prompt", f"the token {shown(wrong[0])} is outside the vocabulary of {vocab_size}")
    return tuple(given)


async def _encoded(service: Service, prompt: Prompt, start: Start) -> tuple[int, ...]:
    return (
        await service.encode(prompt, "prompt", start) if isinstance(prompt, str) else service.checked(prompt, "prompt")
    )


def _shown(service: Service, prompt: Prompt) -> str:
    """A prompt as text."""
    return prompt if isinstance(prompt, str) else service.lm.tokenizer.decode(prompt)


async def _choice(service: Service, plan: Plan, index: int, result: Result, texts: Sequence[str]) -> dict[str, object]:
    """One answer; `texts` are the prompts, if they are wanted before it."""
    told = await plans.kept(service, plan, index, result)
    before = texts[index // plan.wish.n] if texts else ""
    choice: dict[str, object] = {"text": before + result.text, "index": index, "logprobs": None}
    if plan.wish.logprobs is not None:
        speller = service.speller
        entries = echoed(plan.prompt_of(index), result, speller) if texts else []
        entries += answered(result.logprobs or [], speller)
        if texts and result.finish_reason == "stop" and len(result.tokens) < plan.wish.sampling.max_new_tokens:
            entries.append(Entry("", None))  # for the end token: readers count on one token after the prompt
        choice["logprobs"] = completion_logprobs(entries, plan.wish.logprobs, speller)
    return {**choice, "finish_reason": result.finish_reason, **told}


async def _stream(
    service: Service, plan: Plan, answers: Answers, head: Head, texts: Sequence[str]
) -> AsyncGenerator[str, None]:
    results: dict[int, Result] = {}
    lengths = dict.fromkeys(range(len(plan.generations)), 0)
    fields, speller = head.fields(plan), service.speller
    silent: dict[str, object] = {"usage": None} if plan.wish.usage else {}

    def chunk(index: int, text: str, **more: object) -> str:
        choice = {"text": text, "index": index, "logprobs": None, "finish_reason": None, **more}
        return event({**fields, "choices": [choice], **silent})

    for index, text in enumerate(text for text in texts for _ in range(plan.wish.n)):
        yield chunk(index, text)
    async for index, found in answers.events():
        if isinstance(found, Piece):
            scored = {}
            if plan.wish.logprobs is not None and found.logprobs:
                entries = answered(found.logprobs, speller)
                scored = {"logprobs": completion_logprobs(entries, plan.wish.logprobs, speller, lengths[index])}
                lengths[index] += sum(len(entry.text) for entry in entries)
            if found.text or scored:
                yield chunk(index, found.text, **scored)
            continue
        results[index] = found
        told = await plans.kept(service, plan, index, found)
        yield chunk(index, "", finish_reason=found.finish_reason, **told)
    if plan.wish.usage:
        ordered = [results[index] for index in sorted(results)]
        extra = {"usage": plans.usage(plan, ordered), "seed": plan.wish.seed, "timings": plans.timings(ordered)}
        yield event({**fields, "choices": [], **extra})
    yield DONE
