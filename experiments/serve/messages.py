"""Conversations as prompts: messages in RWKV's chat format, and what their answers begin with."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from experiments.serve.errors import ApiError, invalid, shown
from experiments.serve.fields import Fields
from experiments.serve.service import SHORT, Service, Start
from experiments.serve.thinking import opening
from rwkv7_jax.generation.chat_template import THINK_MODES, Think, render, think_mode

BETWEEN = "\n\n"
"""Between turns."""
EFFORTS: Mapping[str, Think] = {
    "none": "off", "minimal": "off", "low": "short", "medium": "on", "high": "long", "xhigh": "long", "max": "long",
}  # fmt: skip
"""OpenAI's words for how long a model thinks."""
Message = Mapping[str, object]


class Prompt(NamedTuple):
    """A conversation up to its next answer."""

    text: str
    opening: str
    """What of the answer stands in the prompt already."""


def think(fields: Fields) -> Think | None:
    """Reads the fields that say how an answer begins.

    Raises:
      ApiError: a 400.
    """
    own = fields.choice("think", THINK_MODES)
    effort = fields.choice("reasoning_effort", tuple(EFFORTS))
    return cast("Think", own) if own is not None else EFFORTS[effort] if effort is not None else None


def messages(given: object, field: str) -> list[Message]:
    """Reads a list of messages; what is in them is read by `prompt`.

    Raises:
      ApiError: a 400; it is no list of objects, or empty.
    """
    if not isinstance(given, list) or not given:
        raise invalid(field, f"a list of messages is wanted, not {shown(given)}" if given != [] else "is empty")
    for place, message in enumerate(given):
        if not isinstance(message, dict):
            raise invalid(f"{field}[{place}]", f"a message is an object with role and content, not {shown(message)}")
        if message.get("content") is None and message.get("role") != "assistant":
            raise invalid(f"{field}[{place}].content", "is missing; a text is wanted")
    return cast("list[Message]", given)


async def prompt(service: Service, found: Sequence[Message], how: Think | None, start: Start, field: str) -> Prompt:
    """Writes messages as a prompt, after what the conversation has read already.

    Raises:
      ApiError: a 400; a message is not text, they are too long, or repeat what the conversation holds.
    """
    size = sum(len(str(message.get("content"))) for message in found)
    most = service.limits.max_prompt
    if size > most * service.longest_token:
        raise invalid(
            field, f"the messages have {size} characters; this server reads {most} tokens", "context_length_exceeded"
        )
    if start.tokens and any(message.get("role") == "assistant" for message in found):
        raise invalid(field, "the conversation is kept here already; send the new messages alone")
    try:
        text = render(found, think=how) if size <= SHORT else await asyncio.to_thread(render, found, think=how)
        begins = opening(think_mode(found[-1], how))
    except ValueError as error:
        raise ApiError(400, f"{field}: {error}", param=field) from None
    return Prompt(BETWEEN + text if start.tokens else text, begins)
