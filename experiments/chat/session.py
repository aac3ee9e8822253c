"""A chat from its first line to its last."""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from experiments.chat import commands, lines, screen
from experiments.chat import model as models
from experiments.chat.conversation import Conversation
from experiments.chat.side import Choice, Side
from experiments.config.chat import Chat
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.generation.chat_template import answer_opening, think_mode
from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.terminal import readable, typed

SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))


def run(config: Chat) -> int:
    """Chats until the input ends; returns the exit status: 1 if it was not a terminal and a command failed.

    Raises:
      ValueError, OSError: wrong files or settings.
    """
    sampling = SamplingParams(**{name: getattr(config, name) for name in SAMPLING})
    use_compilation_cache(config.system.compilation_cache)
    model = models.load(config.model)
    conversation = Conversation(model, sampling, config.seed, tuple(typed("--stop", text) for text in config.stop))
    conversation.think = config.think
    conversation.set_system(typed("--system_prompt", config.system_prompt))
    if config.state:
        conversation.set_state(config.state, config.state_layout)
    if config.ab:
        conversation.set_ab(True)
    if not config.quiet:
        print(f"{model.report}\nstate: {conversation.main.name}\n/help lists the commands", file=sys.stderr)
    ask, terminal = lines.standard_input(list(commands.COMMANDS), screen.say)
    with _handled(signal.default_int_handler):
        failed = _talk(conversation, ask, terminal)
    return int(failed and not terminal)


def _talk(conversation: Conversation, ask: Callable[[str], str], terminal: bool) -> bool:
    """Answers turn after turn; returns whether one failed."""
    failed = False
    while True:
        try:
            text = lines.turn(ask)
        except EOFError:
            if terminal:
                screen.say("")
            return failed
        except KeyboardInterrupt:
            if not terminal:
                raise
            screen.say("")
            continue
        except lines.UnreadableLine as error:
            failed = True
            screen.say(f"error: {error}\n")
            continue
        try:
            if text.strip():
                _take(conversation, text)
        except commands.Leave:
            return failed
        except KeyboardInterrupt:
            screen.say("")
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            failed = True
            screen.say(f"error: {readable(_reason(error))}\n")


def _reason(error: ValueError | OSError) -> str:
    """What went wrong; of the system's own errors the file and the words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _take(conversation: Conversation, text: str) -> None:
    """Does what a command says, or answers a turn."""
    if text.startswith("/"):
        try:
            screen.say(f"{commands.run(conversation, text)}\n")
            return
        except commands.Again:
            pass
    else:
        conversation.hear(text)
    try:
        _answer(conversation)
    except KeyboardInterrupt:
        conversation.settle()
        raise
    except (ValueError, OSError):
        conversation.undo()
        raise


def _answer(conversation: Conversation) -> None:
    """Shows the answers to the last turn. The first Ctrl-C ends them at the next piece, a second one at once."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    with _handled(stop):
        if len(conversation.sides) > 1:
            _both(conversation, lambda: bool(came))
        else:
            _one(conversation.main, conversation.choice, lambda: bool(came))


def _one(side: Side, choice: Choice, cancelled: Callable[[], bool]) -> None:
    """Streams an answer."""
    opened, unshown = _opening(side)
    begun = False
    pieces = side.answer(choice, cancelled)
    while True:
        try:
            piece = opened + next(pieces)
        except StopIteration as end:
            screen.say(f" [{end.value}]\n" if end.value else "\n")
            return
        opened, piece = "", piece if begun else piece.lstrip(unshown)
        begun = begun or bool(piece)
        screen.write(piece)


def _both(conversation: Conversation, cancelled: Callable[[], bool]) -> None:
    """Shows two answers side by side, once both are there."""
    texts = []
    for side in conversation.sides:
        text, unshown = _opening(side)
        pieces = side.answer(conversation.choice, cancelled)
        while True:
            try:
                text += next(pieces)
                screen.progress(f"{side.name}: {len(text)} characters")
            except StopIteration as end:
                texts.append(text.lstrip(unshown).rstrip() + (f" [{end.value}]" if end.value else ""))
                break
    screen.progress("")
    titles = [f"with {conversation.main.name}", "without"]
    screen.say(screen.beside((titles[0], titles[1]), (texts[0], texts[1])) + "\n")


def _opening(side: Side) -> tuple[str, str]:
    """What is shown before an answer, and characters that are not shown where it begins.

    An empty chain of thought is not shown, nor its last bracket, which the model writes.
    """
    think = think_mode(side.messages[-1])
    if think in (None, "off"):
        return "", " \n" + ">" * (think == "off")
    return answer_opening(think).removeprefix("Assistant:"), " \n"


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Ctrl-C goes to a handler; in another thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
