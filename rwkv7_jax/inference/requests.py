"""What the engine of continuous batching takes and gives: requests, pieces of answers, results, and tickets."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.state import State

FinishReason = Literal["stop", "length", "cancelled", "timeout"]


class QueueFull(ValueError):
    """As many requests wait as may.

    Args:
      waiting: their number, which is an attribute too.
    """

    def __init__(self, waiting: int):
        super().__init__(f"{waiting} requests wait already, as many as may: try again later")
        self.waiting = waiting


@dataclass(frozen=True)
class Request:
    """A prompt to continue, and how."""

    tokens: tuple[int, ...]
    """The prompt, at least one token."""
    sampling: SamplingParams
    """How tokens are chosen, and `max_new_tokens`."""
    state: State | None = None
    """Where the prompt begins: an unbatched state of plain matrices; None is the zero state. It is not changed."""
    seed: int = 0
    """Chooses the tokens that `generate` chooses with this seed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are left out of it."""
    logprobs: int | None = None
    """0 to 20: the log-probability of each chosen token is wanted, and of so many of the likeliest beside it."""
    echo_logprobs: bool = False
    """Those of the prompt's tokens after the first are wanted too. Nothing of the prompt is taken from the cache."""
    keep_state: bool = False
    """`Result.state` is wanted."""
    deadline: float | int | None = None
    """On the clock of `time.monotonic`; when it is past, the request ends."""


class TokenLogprob(NamedTuple):
    """Natural log-probabilities in float32, before penalties, temperature and filters."""

    token: int
    """The token's id."""
    logprob: float
    """Its log-probability."""
    likeliest: tuple[tuple[int, float], ...]
    """(token, log-probability) of the likeliest tokens, the likeliest first."""


class Piece(NamedTuple):
    """A part of an answer."""

    text: str
    """What no stop string and no later byte can change any more; it may be empty."""
    tokens: list[int]
    """Tokens chosen since the last piece, up to the one that completes a stop string; without the end token."""
    logprobs: list[TokenLogprob]
    """One a token, if they are wanted."""


class Result(NamedTuple):
    """A whole answer."""

    text: str
    """What the pieces join to."""
    tokens: list[int]
    """What `text` consists of. What a stop string leaves of a token is encoded anew."""
    finish_reason: FinishReason
    """Why it ended: by itself or at a stop string, at `max_new_tokens`, cancelled, or past its deadline."""
    state: State | None
    """NumPy arrays, unbatched: after the prompt and `tokens`, no more and no less. None unless it is wanted, or if the
    request ended while its prompt was read."""
    prompt_logprobs: list[TokenLogprob] | None
    """One for each token of the prompt but the first, if they are wanted."""
    logprobs: list[TokenLogprob] | None
    """One for each of `tokens` that was chosen whole, if they are wanted."""
    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Tokens of the prompt that were not read, since a state after them was known."""
    first_token_s: float
    """Seconds from `submit` to the first token; `total_s` if there is none."""
    total_s: float
    """Seconds from `submit` to the end."""


Event = Piece | Result | Exception


class Ticket:
    """A request under way; its methods may be called from any thread. `Engine.submit` makes it.

    Args:
      wake: called after `cancel`.
    """

    def __init__(self, wake: Callable[[], None]):
        self._condition, self._ended = threading.Condition(threading.RLock()), threading.Event()
        self._pieces: list[Piece] = []
        self._end: Result | Exception | None = None
        self._callback: Callable[[Event], None] | None = None
        self._cancelled = False
        self._wake = wake

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """Whether the result, or an error, is there."""
        return self._end is not None

    def pieces(self) -> Iterator[Piece]:
        """Yields the pieces as they come, from the first on.

        Raises:
          Exception: what ended the request without a result, after the pieces before.
        """
        given = 0
        while True:
            with self._condition:
                self._condition.wait_for(lambda given=given: len(self._pieces) > given or self._end is not None)
                new, end = self._pieces[given:], self._end
            yield from new
            given += len(new)
            if end is not None:
                if isinstance(end, Exception):
                    raise end
                return

    def result(self, timeout: float | int | None = None) -> Result:
        """Waits for the result.

        Args:
          timeout: seconds to wait at most; the request goes on then.

        Returns:
          The whole answer.

        Raises:
          TimeoutError: it is not there in time.
          Exception: what ended the request without a result, `NonFiniteLogitsError` for one.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request is not done after {timeout} s")
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        return self._end

    def cancel(self) -> None:
        """Ends the request before its next token; what was chosen is its result."""
        self._cancelled = True
        self._wake()

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Calls back with each piece, then with the result or what was raised instead.

        What is there already is passed on at once, from this thread; the rest comes from the engine's. The callback
        must be quick. If it raises, the request is cancelled, and it is not called again.
        """
        with self._condition:
            self._callback = callback
            for event in [*self._pieces, *([] if self._end is None else [self._end])]:
                self._call(event)

    def put(self, event: Event) -> None:
        """Adds a piece, or the end. For the engine."""
        with self._condition:
            if self._end is not None:
                return
            if isinstance(event, Piece):
                self._pieces.append(event)
            else:
                self._end = event
                self._ended.set()
            self._condition.notify_all()
            self._call(event)

    def _call(self, event: Event) -> None:
        if self._callback is None:
            return
        try:
            self._callback(event)
        except Exception:
            self._callback = None
            self.cancel()
