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

from rwkv7_jax.generation.chat_turns import turn_text
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


_ROLES = {
    "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant", "bot": "Assistant",
    "model": "Assistant", "system": "System", "developer": "System",
}  # fmt: skip


def from_messages(messages: object) -> str:
    """Returns a list of messages as a text in RWKV's chat format.

    Args:
      messages: {"role", "content"} each, or ShareGPT's {"from", "value"}.

    Returns:
      The text; an empty line stands between turns and inside none.

    Raises:
      ValueError: one line, for another form, an unknown role, an answer without text, or no answer at all.

    Example:
      >>> from_messages([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
      'User: 2+2?\\n\\nAssistant: 4'
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('a list of {"role", "content"} messages is wanted')
    turns = [_turn(number, message) for number, message in enumerate(messages, 1)]
    text = "\n\n".join(turn for turn in turns if turn != "System: ")
    if not any(part.answer for part in exchanges(text)):
        raise ValueError("no assistant message follows another; there is nothing to learn")
    return text


def _turn(number: int, message: object) -> str:
    """One message. Raises: ValueError in one line."""
    if not isinstance(message, Mapping):
        raise ValueError(f'message {number} is not an object {{"role", "content"}}')
    role, content = (message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value")))
    name = _ROLES.get(role) if isinstance(role, str) else None
    if name is None:
        raise ValueError(f"message {number} has the role {str(role)[:40]!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str | list):
        raise ValueError(f"message {number} ({role}) has no text")
    text = turn_text(content)
    if not text and name == "Assistant":
        raise ValueError(f"message {number} ({role}) is empty; there is nothing to learn")
    return f"{name}: {text}"


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
    tokenizer: Tokenizer, prompt: str, completion: str, max_len: int, learn: Learn = "answers"
) -> list[Example]:
    """Encodes a record: prompt and completion, or, where the prompt is empty, a conversation or a plain text.

    Args:
      tokenizer: text to token ids.
      prompt: given; may be empty.
      completion: predicted; of a conversation only its answers, unless `learn` is "all".
      max_len: bound of the model's input positions.
      learn: what is predicted of a conversation.

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
    parts = exchanges(completion) if learn == "answers" else []
    return encode_conversation(tokenizer, parts, max_len) if parts else encode_text(tokenizer, completion, max_len)
