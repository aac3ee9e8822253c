r"""RWKV's chat format: conversations as the text that G1 models are trained on.

Turns stand one after another, an empty line between them, as the model's authors publish them
(https://github.com/BlinkDL/RWKV-LM/blob/b9563fc3033fc04dee5a663db794b9592b8bf20e/RWKV-v7/RWKV7-G1x-templates.txt; the
model card https://huggingface.co/BlinkDL/rwkv7-g1 has the same forms, and the older " think a bit" without brackets):

    System: ...\n\nUser: ...\n\nAssistant: ...\n\nUser: ...\n\nAssistant:

A text for the model to continue ends without a blank: `Assistant:`, or `Assistant: <think` for an answer that begins
with a chain of thought, or `Assistant: <think>\n</think` for one after an empty chain. The model writes the closing
bracket itself, since some tokens join it to what follows.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from rwkv7_jax.generation.chat_turns import turn_text

__all__ = ["ROLES", "STOPS", "THINK_MODES", "Think", "answer_opening", "assistant_spans", "render"]

Think = Literal["on", "short", "long", "off"]
"""How an answer begins: a chain of thought, one that the user's turn asks to be short or long, or an empty one."""
THINK_MODES: tuple[Think, ...] = get_args(Think)
"""All values of `Think`."""

ROLES = {
    "system": "System", "developer": "System",
    "user": "User", "human": "User", "tool": "User", "function": "User",
    "assistant": "Assistant", "gpt": "Assistant", "bot": "Assistant", "model": "Assistant",
}  # fmt: skip
"""Names of roles, as messages of several tools have them, and the headers of their turns."""

STOPS = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
"""An answer ends before these, or with the token that ends a text. An empty line alone does not end it: chains of
thought and long answers have paragraphs."""

_HINTS = {"on": "", "off": "", "short": " (think a bit)", "long": " (think a lot)"}
_TOOL_RESULT = "Function output:\n"


def answer_opening(think: Think | None = None) -> str:
    r"""Returns what the model continues as its answer.

    Args:
      think: how the answer begins; None: as the model likes.

    Returns:
      The beginning of an assistant's turn, without a blank at its end.

    Raises:
      ValueError: another word.

    Example:
      >>> answer_opening("off")
      'Assistant: <think>\n</think'
    """
    if think is None:
        return "Assistant:"
    return "Assistant: <think" + (">\n</think" if _checked_think(think) == "off" else "")


def render(
    messages: Sequence[Mapping[str, object]],
    *,
    think: Think | None = None,
    add_generation_prompt: bool = True,
    keep_empty_lines: bool = True,
) -> str:
    r"""Returns a conversation as text.

    Empty lines are left out of the turns of system, user and tools, so that no turn ends before its end. System turns
    without text are left out.

    Args:
      messages: `{"role", "content"}` each, or ShareGPT's `{"from", "value"}`; roles are those of `ROLES`. A content is
        text, text parts, or None. Of an assistant's message, `reasoning_content` becomes its chain of thought and
        `tool_calls` become JSON blocks. A user's message may say by `think` how its answer begins.
      think: the same for the last message, where it does not say so.
      add_generation_prompt: end with the opening of the next answer.
      keep_empty_lines: keep those inside answers, as the model wrote them.

    Returns:
      The text.

    Raises:
      ValueError: one line that names the message: no object, an unknown role, a content that is not text.

    Example:
      >>> messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one\n\ntwo"}]
      >>> render(messages)
      'System: Be brief.\n\nUser: one\ntwo\n\nAssistant:'
      >>> render(messages[1:], think="short")
      'User: one\ntwo (think a bit)\n\nAssistant: <think'
    """
    turns = [turn for turn in _turns(messages, think, keep_empty_lines) if turn != "System:"]
    if add_generation_prompt:
        turns.append(answer_opening(think_mode(messages[-1], think) if messages else think))
    return "\n\n".join(turns)


def assistant_spans(
    messages: Sequence[Mapping[str, object]], *, keep_empty_lines: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    r"""Returns a whole conversation as text, and where its answers stand in it, for a loss on answers alone.

    A span begins after the colon of `Assistant:`, since the blank belongs to the first token of an answer, and ends
    with the answer's text; what ends the turn stands after it: an empty line, or the end of the text.

    Args:
      messages: as `render` takes them.
      keep_empty_lines: keep those inside answers. Without them, answers also end where other tools end them, at the
        first empty line.

    Returns:
      (text, [(begin, end) of each answer that has text, in characters]).

    Raises:
      ValueError: as `render`.

    Example:
      >>> text, spans = assistant_spans([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
      >>> text, [text[begin:end] for begin, end in spans]
      ('User: 2+2?\n\nAssistant: 4', [' 4'])
    """
    text, spans, header = "", [], "Assistant:"
    for turn in _turns(messages, None, keep_empty_lines):
        if turn == "System:":
            continue
        text += "\n\n" * bool(text)
        if turn.startswith(header) and turn != header:
            spans.append((len(text) + len(header), len(text) + len(turn)))
        text += turn
    return text, spans


def think_mode(message: Mapping[str, object], default: Think | None = None) -> Think | None:
    """Returns how the answer to a message begins: its own `think`, if it is a user's and has one, or the default.

    Raises:
      ValueError: its `think` is another word.
    """
    own = message.get("think") if message.get("role", message.get("from")) in ("user", "human") else None
    return default if own is None else _checked_think(own)


def _turns(messages: Sequence[Mapping[str, object]], think: Think | None, keep_empty_lines: bool) -> list[str]:
    """The text of each message, headers included."""
    turns, last = [], len(messages)
    for number, message in enumerate(messages, 1):
        try:
            turns.append(_turn(message, think if number == last else None, keep_empty_lines))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return turns


def _turn(message: Mapping[str, object], think: Think | None, keep_empty_lines: bool) -> str:
    header = _header(message)
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(content, str | list | tuple | None):
        raise ValueError(f"the content of {role!r} must be text or text parts, not {type(content).__name__}")
    parts = () if isinstance(content, str) else content or ()
    if wrong := [part for part in parts if not isinstance(part, str | Mapping)]:
        raise ValueError(f"the content of {role!r} has a part that is not text: {wrong[0]!r:.60}")
    if header == "Assistant":
        text = _answer(message, turn_text(content, keep_empty_lines=keep_empty_lines), keep_empty_lines)
    else:
        text = (_TOOL_RESULT if role in ("tool", "function") else "") + turn_text(content)
    if header == "User" and role in ("user", "human"):
        text += _HINTS.get(think_mode(message, think) or "", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the content of {role!r} has half characters (surrogates)") from None
    return f"{header}: {text}".rstrip()


def _header(message: Mapping[str, object]) -> str:
    if not isinstance(message, Mapping):
        raise ValueError(f'an object {{"role", "content"}} is wanted, not {type(message).__name__}')
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"the role {role!r:.60} is not known; give one of {', '.join(ROLES)}")
    return ROLES[role]


def _answer(message: Mapping[str, object], text: str, keep_empty_lines: bool) -> str:
    """An assistant's text between its chain of thought and its calls of functions."""
    parts = [text] if text else []
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip():
        parts.insert(0, f"<think>\n{turn_text(reasoning, keep_empty_lines=keep_empty_lines)}\n</think>")
    calls = message.get("tool_calls")
    return "\n".join([*parts, *map(_call, calls if isinstance(calls, list | tuple) else ())])


def _call(call: object) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError('a tool call needs {"function": {"name", "arguments"}}')
    arguments = function.get("arguments", {})
    try:
        called = {
            "name": function["name"],
            "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments,
        }
        text = json.dumps(called, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"the arguments of the tool call {function['name']!r:.60} are not JSON") from None
    return f"```json\n{text}\n```"


def _checked_think(think: object) -> Think:
    if think not in THINK_MODES:
        raise ValueError(f"think must be one of {', '.join(THINK_MODES)}, not {think!r:.60}")
    return think
