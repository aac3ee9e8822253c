"""Conversations in plain text: which parts are answers, and training examples that predict these alone.

A conversation is a text of turns with headers, `User: ...` and `Assistant: ...` with an empty line between them, RWKV's
format. Read as well: `Human:`, `System:`, `Bot:`; `Question:` and `Answer:`; `Q:` and `A:`; `Instruction:`, `Input:`,
`Response:`, with `### ` before them or not; ChatML. Turns that no empty line separates are found where every header
begins a line.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rwkv7_jax.generation.chat_template import ROLES, assistant_spans
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.objective import Example, encode_example, encode_text

Learn = Literal["answers", "all"]
"""What is predicted of a conversation: the answers alone, or every token."""

_AFTER_BLANK_LINE, _ON_OWN_LINE = r"(?:\A\s*|(?<=\n\n)|(?<=\n\r\n))", r"(?:\A\s*|(?<=\n))"


class Exchange(NamedTuple):
    """A part of a conversation; all parts joined are the text."""

    context: str
    """Up to and with the header of the answer."""
    answer: str
    """Up to the next header; empty after a last turn without an answer."""


class _Style(NamedTuple):
    header: str
    """Pattern, the role as its group."""
    answers: tuple[str, ...]
    separators: tuple[str, ...]
    """What stands before a header, tried in order."""
    preamble: bool = False
    """Whether text may stand before the first header."""


_BLANK_OR_LINE = (_AFTER_BLANK_LINE, _ON_OWN_LINE)
_STYLES = (
    _Style(r"<\|im_start\|>(\w+)\n", ("assistant",), ("",), preamble=True),
    _Style(r"(User|Human|System|Assistant|Bot):", ("Assistant", "Bot"), (_AFTER_BLANK_LINE,), preamble=True),
    _Style(r"(User|Human|System|Assistant|Bot):", ("Assistant", "Bot"), (_ON_OWN_LINE,)),
    _Style(r"### (Instruction|Input|Response):", ("Response",), (_AFTER_BLANK_LINE,), preamble=True),
    _Style(r"(Instruction|Input|Response):", ("Response",), _BLANK_OR_LINE),
    _Style(r"(Question|Answer):", ("Answer",), _BLANK_OR_LINE),
    _Style(r"(Q|A):", ("A",), _BLANK_OR_LINE),
)


Template = Literal["rwkv", "g1", "none"]
"""How messages become text: RWKV's chat format without empty lines inside turns; with those of answers; no format."""
_Spans = list[tuple[int, int]]


class Conversation(NamedTuple):
    """A conversation as text."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Characters (begin, end) of what is learnt, in order: each answer with the empty line that ends its turn."""

    @property
    def exchanges(self) -> list[Exchange]:
        """The text cut at both ends of each answer."""
        return cut_at(self.text, self.answers)


def cut_at(text: str, answers: Sequence[tuple[int, int]]) -> list[Exchange]:
    """Returns a text cut at both ends of each answer, all parts of which joined are the text.

    Example:
      >>> cut_at("1+1=2, 2+2=4.", [(4, 5), (11, 12)])
      [Exchange(context='1+1=', answer='2'), Exchange(context=', 2+2=', answer='4'), Exchange(context='.', answer='')]
    """
    parts, begin = list[Exchange](), 0
    for start, end in answers:
        if parts and start == begin:  # two answers with nothing between them are one
            parts[-1] = Exchange(parts[-1].context, parts[-1].answer + text[start:end])
        else:
            parts.append(Exchange(text[begin:start], text[start:end]))
        begin = end
    return [*parts, Exchange(text[begin:], "")] if begin < len(text) else parts


def from_messages(messages: object, template: Template = "rwkv") -> Conversation:
    """Returns a list of messages as a text, with the places of its answers.

    Args:
      messages: {"role", "content"} each, or ShareGPT's {"from", "value"}, with the roles of
        `rwkv7_jax.generation.chat_template`. An assistant's message whose "weight" is 0 is not learnt.
      template: "rwkv" leaves empty lines out of all turns, "g1" keeps those inside answers; "none" puts the contents
        one after another as they are.

    Returns:
      The conversation.

    Raises:
      ValueError: one line, for another form, an unknown role, an answer without text, or no answer at all.

    Example:
      >>> from_messages([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
      Conversation(text='User: 2+2?\\n\\nAssistant: 4', answers=((22, 24),))
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('a list of {"role", "content"} messages is wanted')
    if wrong := [number for number, message in enumerate(messages, 1) if not isinstance(message, Mapping)]:
        raise ValueError(f'message {wrong[0]} is not an object {{"role", "content"}}')
    text, spans = _rendered(messages, template)
    assistants = [number for number, message in enumerate(messages) if ROLES[_role(message)] == "Assistant"]
    for number, message in enumerate(messages):
        if number not in assistants and message.get("content", message.get("value")) is None:
            raise ValueError(f"message {number + 1} ({_role(message)}) has no text")
    if len(spans) < len(assistants):
        first = next(number for number in assistants if not _rendered([messages[number]], template)[1])
        raise ValueError(f"message {first + 1} ({_role(messages[first])}) is empty; there is nothing to learn")
    weights = [messages[number].get("weight") for number in assistants]
    learnt = tuple(span for span, weight in zip(spans, weights, strict=True) if weight is None or weight)
    if not learnt or len(assistants) == len(messages):
        raise ValueError("no assistant message follows another; there is nothing to learn")
    return Conversation(text, learnt)


def _role(message: Mapping[str, object]) -> str:
    return str(message.get("role", message.get("from")))


def _rendered(messages: Sequence[Mapping[str, object]], template: Template) -> tuple[str, _Spans]:
    """The text, and where its answers are."""
    text, spans = assistant_spans(messages, keep_empty_lines=template == "g1")
    if template == "none":
        return _contents(messages)
    return text, [(begin, end + 2 if text.startswith("\n\n", end) else end) for begin, end in spans]


def _contents(messages: Sequence[Mapping[str, object]]) -> tuple[str, _Spans]:
    """The contents one after another."""
    text, spans = "", []
    for message in messages:
        content = message.get("content", message.get("value")) or ""
        parts = [content] if isinstance(content, str) else list(content) if isinstance(content, list | tuple) else []
        found = "".join(part if isinstance(part, str) else str(part["text"]) for part in parts)
        if found and ROLES[_role(message)] == "Assistant":
            spans.append((len(text), len(text) + len(found)))
        text += found
    return text, spans


def exchanges(text: str) -> list[Exchange]:
    """Returns the exchanges of a conversation, in order; none if the text is not one.

    Args:
      text: any text.

    Returns:
      Pairs of what is given and what is answered.

    Example:
      >>> exchanges("User: 2+2?\\n\\nAssistant: 4")
      [Exchange(context='User: 2+2?\\n\\nAssistant:', answer=' 4')]
    """
    for style in _STYLES:
        for separator in style.separators:
            found = list(re.finditer(separator + style.header, text))
            if _is_conversation(style, text, found):
                return _cut(text, found, style.answers)
    return []


def _is_conversation(style: _Style, text: str, headers: Sequence[re.Match[str]]) -> bool:
    """Whether there is an answer to something; text before the first header only where the style allows it."""
    roles = [match.group(1) in style.answers for match in headers]
    if not any(roles):
        return False
    return (style.preamble and not roles[0]) or (not text[: headers[0].start()].strip() and not all(roles))


def _cut(text: str, headers: Sequence[re.Match[str]], answers: Sequence[str]) -> list[Exchange]:
    """Cuts the text after each answer; an empty answer belongs to the context of the next."""
    parts, begin = [], 0
    ends = [*(match.start() for match in headers[1:]), len(text)]
    for match, end in zip(headers, ends, strict=True):
        if match.group(1) in answers and text[match.end() : end].strip():
            parts.append(Exchange(text[begin : match.end()], text[match.end() : end]))
            begin = end
    return [*parts, Exchange(text[begin:], "")] if begin < len(text) else parts


def encode_conversation(tokenizer: Tokenizer, parts: Sequence[Exchange], max_len: int) -> list[Example]:
    """Encodes a conversation so that its answers alone are predicted, and the end token after the last one.

    Too long a conversation is cut between exchanges. One exchange that is too long is cut as `encode_example` does.

    Args:
      tokenizer: text to token ids.
      parts: of `exchanges`; a last one without an answer is left out, and then no end token is predicted.
      max_len: bound of the model's input positions.

    Returns:
      The examples in order, as few as hold all exchanges.

    Raises:
      ValueError: no exchange has an answer.
    """
    answered = [part for part in parts if part.answer]
    if not answered:
        raise ValueError(f"the conversation has no answer to learn: {parts[0].context[-60:] if parts else ''!r}")
    ends = [False] * (len(answered) - 1) + [len(answered) == len(parts)]
    groups: list[list[Example]] = []
    for part, end in zip(answered, ends, strict=True):
        one = encode_example(tokenizer, *part, max_len, eos=end, follows=bool(groups))
        if groups and sum(len(example.tokens) for example in [*groups[-1], one]) <= max_len + 1:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_joined(group) for group in groups]


def _joined(group: Sequence[Example]) -> Example:
    """Several exchanges as one example."""
    if len(group) == 1:
        return group[0]
    learnt = [np.arange(len(one.tokens)) >= one.completion_start for one in group]
    return Example(
        np.concatenate([one.tokens for one in group]),
        group[0].completion_start,
        sum(one.truncated for one in group),
        np.concatenate(learnt),
    )


def encode_record(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    max_len: int,
    learn: Learn = "answers",
    answers: Sequence[tuple[int, int]] | None = None,
) -> list[Example]:
    """Encodes a record: prompt and completion, or, where the prompt is empty, a conversation or a plain text.

    Args:
      tokenizer: text to token ids.
      prompt: given; may be empty.
      completion: predicted; of a conversation only its answers, unless `learn` is "all".
      max_len: bound of the model's input positions.
      learn: what is predicted of a conversation.
      answers: characters (begin, end) of a conversation's answers; None: they are found by their headers.

    Returns:
      One example, or the windows of a longer text.

    Raises:
      ValueError: there is nothing to predict.

    Example:
      >>> from rwkv7_jax.tokenizer import ByteTokenizer
      >>> (example,) = encode_record(ByteTokenizer(), "", "Q: 1?\\n\\nA: 2\\n\\nQ: 3?\\n\\nA: 4", 64)
      >>> bytes(example.tokens[example.learnt].tolist())
      b' 2\\n\\n 4\\x00'
    """
    if prompt:
        return [encode_example(tokenizer, prompt, completion, max_len)]
    parts = []
    if learn == "answers":
        parts = exchanges(completion) if answers is None else cut_at(completion, answers)
    return encode_conversation(tokenizer, parts, max_len) if parts else encode_text(tokenizer, completion, max_len)
