"""What begins with a slash: one function a command, each of which returns the lines to show."""

from collections.abc import Callable
from typing import NamedTuple, get_args

from experiments.chat.conversation import NONE, Conversation, settings
from experiments.chat.side import Side, norm
from experiments.config.overrides import UsageError, suggest
from rwkv7_jax.checkpoint import LAYOUTS
from rwkv7_jax.generation.chat_template import THINK_MODES
from rwkv7_jax.generation.chat_template import Think as ThinkMode


class Leave(Exception):
    """The chat is over."""


class Again(Exception):
    """The last turn is to be answered now."""


class Command(NamedTuple):
    """What follows the slash."""

    usage: str
    help: str
    run: Callable[[Conversation, str], str]


def run(conversation: Conversation, line: str) -> str:
    """Does what a line that begins with a slash says.

    Returns:
      Lines to show.

    Raises:
      ValueError, OSError: in one line; nothing was changed then.
      Leave, Again: what the caller has to do.
    """
    word, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(word)
    if command is None:
        hint = suggest(word, list(COMMANDS)) or "; /help lists them"
        raise UsageError(f"no command {word!r:.60}{hint}")
    return command.run(conversation, rest.strip())


def _help(_: Conversation, rest: str) -> str:
    _nothing("/help", rest)
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    return "\n".join([*lines, "", 'A backslash at the end of a line, or """ around lines, joins lines to one turn.'])


def _state(conversation: Conversation, rest: str) -> str:
    if not rest:
        return _about(conversation.main)
    both = len(conversation.sides) > 1
    conversation.set_state(*_file_and_layout(rest))
    ended = "; /ab is off" if both and len(conversation.sides) == 1 else ""
    return _about(conversation.main) + ended


def _about(side: Side) -> str:
    return f"state: {side.name}" + ("" if side.start is None else f", norm {norm(side.start):.4g}")


def _ab(conversation: Conversation, rest: str) -> str:
    if rest not in ("", "on", "off"):
        raise UsageError(f"/ab takes on or off, not {rest!r:.60}")
    if rest:
        conversation.set_ab(rest == "on")
    return f"two answers, with {conversation.main.name} and without" if len(conversation.sides) > 1 else "one answer"


def _think(conversation: Conversation, rest: str) -> str:
    if rest and rest not in (*THINK_MODES, NONE):
        raise UsageError(f"/think takes one of {', '.join((*THINK_MODES, NONE))}, not {rest!r:.60}")
    if rest:
        conversation.think = next((mode for mode in get_args(ThinkMode) if mode == rest), None)
    return f"think: {conversation.think or NONE}"


def _system(conversation: Conversation, rest: str) -> str:
    if rest:
        conversation.set_system("" if rest == NONE else rest)
    return f"system prompt: {conversation.system or NONE}"


def _set(conversation: Conversation, rest: str) -> str:
    name, _, value = rest.replace("=", " ").partition(" ")
    if rest and not value.strip():
        raise UsageError(f"/set NAME VALUE: a value is missing after {name!r:.60}")
    if rest:
        conversation.set_number(name, value.strip())
    shown = {name: settings(conversation)[name]} if rest else settings(conversation)
    return ", ".join(f"{key} {number if isinstance(number, int) else f'{number:g}'}" for key, number in shown.items())


def _undo(conversation: Conversation, rest: str) -> str:
    _nothing("/undo", rest)
    return f"took back: {' '.join(conversation.undo().split()):.200}"


def _new(conversation: Conversation, rest: str) -> str:
    _nothing("/new", rest)
    conversation.clear()
    return "a new conversation"


def _regen(conversation: Conversation, rest: str) -> str:
    _nothing("/regen", rest)
    conversation.forget_answer()
    raise Again


def _save(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise UsageError("/save FILE: a name is missing, such as chat.safetensors")
    file, layout = _file_and_layout(rest)
    state, text = conversation.save(file, layout)
    left_out = ", without token shifts, which its layout does not hold" if layout else ""
    return f"wrote {state}{left_out}\nwrote {text}"


def _load(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise UsageError("/load FILE: a name is missing, such as chat.jsonl")
    conversation.load(rest)
    last = conversation.main.messages[-1:]
    more = "; /regen answers the last" if last and last[0]["role"] != "assistant" else ""
    return f"{conversation.turns} turns{more}"


def _stats(conversation: Conversation, rest: str) -> str:
    _nothing("/stats", rest)
    return "\n".join(_side_stats(conversation, side) for side in conversation.sides)


def _side_stats(conversation: Conversation, side: Side) -> str:
    read, generated, seconds = side.spent
    state, after = side.state(), side.context
    size = sum(leaf.nbytes for leaf in (state.att_shift, state.ffn_shift)) + getattr(state.wkv, "nbytes", 0)
    speed = f", {generated / seconds:.1f} tokens/s" if seconds else ""
    lines = [
        f"context      {after} tokens, {conversation.turns} turns; computed {side.tokens_read}",
        f"last answer  {read} tokens read, {generated} generated in {seconds:.2f} s{speed}",
        f"state        norm {norm(state):.4g}, at the start {norm(side.start):.4g}; {size / 1e6:.2f} MB",
    ]
    title = [f"[{side.name}]"] if len(conversation.sides) > 1 else []
    return "\n".join([*title, *lines])


def _quit(_: Conversation, rest: str) -> str:
    _nothing("/quit", rest)
    raise Leave


def _file_and_layout(rest: str) -> tuple[str, str | None]:
    """A name, and the layout that the last word may be."""
    file, _, last = rest.rpartition(" ")
    return (file.strip(), last) if last in LAYOUTS and file else (rest, None)


def _nothing(word: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{word} takes nothing, not {rest!r:.60}")


COMMANDS = {
    "/state": Command("/state FILE [LAYOUT]|none", "starts from a state; the conversation is read again", _state),
    "/ab": Command("/ab on|off", "two answers side by side: with the state and without", _ab),
    "/system": Command("/system TEXT|none", "what the conversation begins with", _system),
    "/think": Command("/think on|short|long|off|none", "chain of thought before the next answers", _think),
    "/set": Command("/set NAME VALUE", "temperature, top_p, seed and others; alone: lists them", _set),
    "/regen": Command("/regen", "answers the last turn once more, with other random numbers", _regen),
    "/undo": Command("/undo", "takes the last turn and its answer back", _undo),
    "/new": Command("/new", "begins a new conversation, with the same state and settings", _new),
    "/save": Command("/save FILE [LAYOUT]", "writes the conversation's state, and its text as .jsonl beside it", _save),
    "/load": Command("/load FILE.jsonl", "goes on with a conversation", _load),
    "/stats": Command("/stats", "tokens, speed, the state's norm", _stats),
    "/help": Command("/help", "this list", _help),
    "/quit": Command("/quit", "ends the chat, as Ctrl-D does", _quit),
}
