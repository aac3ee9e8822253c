"""Continuous batching: requests of any length join and leave a fixed number of slots between two tokens.

One thread owns the device. In each turn it reads at most one chunk of one prompt, prompts in turn, and chooses a token
or a few in every slot that answers. Requests wait first come, first served. See `rwkv7_jax.inference.slots` for the
programs and `rwkv7_jax.inference.prefix_cache` for what is kept of prompts.
"""

import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from rwkv7_jax.generation.arguments import seed_number, text_list, token_ids
from rwkv7_jax.inference.prefix_cache import Keys, PrefixCache, StartKeys
from rwkv7_jax.inference.programs import programs_for
from rwkv7_jax.inference.requests import Piece, QueueFull, Request, Result, Ticket, TokenLogprob
from rwkv7_jax.inference.scheduler import Job, Scheduler
from rwkv7_jax.inference.slots import MOST_LOGPROBS
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import WKVState

__all__ = ["Engine", "EngineStats", "Piece", "QueueFull", "Request", "Result", "Ticket", "TokenLogprob"]


class EngineStats(NamedTuple):
    """What an engine does and did."""

    slots: int
    """Requests that can be answered at a time."""
    running: int
    """Requests with a slot."""
    waiting: int
    """Requests in the queue."""
    submitted: int
    """Requests taken since the start."""
    refused: int
    """Requests refused because the queue was full."""
    tokens_read: int
    """Tokens of prompts, without those that were known."""
    tokens_chosen: int
    """Tokens of answers."""
    steps: int
    """Passes over all slots."""
    chunks: int
    """Parts of prompts read."""
    programs: int
    """Programs compiled."""
    prefix_lookups: int
    """Searches for a known beginning of a prompt."""
    prefix_hits: int
    """Those that found one."""
    prefix_tokens: int
    """Tokens of prompts that were not read, since a state after them was known."""
    cache_entries: int
    """States kept."""
    cache_bytes: int
    """Bytes that these states take on the device."""


class Engine:
    """Answers many requests at once on one model.

    An answer is what `LanguageModel.generate` gives for the same prompt, state, seed and settings, and does not depend
    on its neighbours.

    Args:
      lm: the model, on one device.
      slots: requests that are answered at a time.
      queue: requests that wait at most.
      prefill_chunk: tokens of a prompt that are read at a time: a multiple of 128.
      cache_bytes: memory for states of prompts, on the device; 0 keeps none.
      exact_prefixes: whether a cached prefix must leave answers the same bit for bit; without that, ends of answers
        are kept too, and continue with the last bits different.

    Raises:
      ValueError: a number is out of its range.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        slots: int = 8,
        queue: int = 64,
        prefill_chunk: int = 128,
        cache_bytes: int = 256 << 20,
        exact_prefixes: bool = True,
    ):
        if slots < 1 or queue < 1 or cache_bytes < 0 or prefill_chunk < 128 or prefill_chunk % 128:
            raise ValueError(
                f"engine: {slots} slots, a queue of {queue}, chunks of {prefill_chunk} tokens, {cache_bytes} bytes: "
                "slots and queue must be at least 1, chunks a multiple of 128, and bytes at least 0"
            )
        self._lm, self._limit, self._chunk = lm, queue, prefill_chunk
        model, self._params = lm.for_rows(slots)
        self._programs = programs_for(model, self._params, slots, prefill_chunk)
        self._cache = PrefixCache(cache_bytes, prefill_chunk, exact_prefixes)
        self._scheduler = Scheduler(self._programs, self._params, lm.tokenizer, self._cache)
        shapes = jax.eval_shape(partial(zero_state, model.config, None))
        self._zero: State = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self._start_keys = StartKeys()
        self._zero_key = self._start_keys.key(self._zero)
        self._waiting: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closing, self._submitted, self._refused = False, 0, 0
        self._error: Exception | None = None
        self._rest: Future[None] | None = None
        """Programs that are still compiled."""
        self._thread = threading.Thread(target=self._run, name="rwkv7-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Takes a request.

        Args:
          request: what to continue, and how.

        Returns:
          What gives its answer.

        Raises:
          QueueFull: a `ValueError`; as many requests wait as may.
          ValueError: a token outside the vocabulary, a misfitting state, or another setting that cannot be.
          RuntimeError: the engine was closed, or its thread has failed.
        """
        ticket = Ticket(self._wake)
        job = self._job(request, ticket)
        with self._condition:
            if self._error is not None:
                raise RuntimeError(f"the engine has failed: {self._error}")
            if self._closing:
                raise RuntimeError("the engine is closed")
            if len(self._waiting) >= self._limit:
                self._refused += 1
                raise QueueFull(len(self._waiting))
            self._submitted += 1
            self._waiting.append(job)
            self._condition.notify_all()
        return ticket

    def warm_up(self, *, wait: bool = True) -> None:
        """Compiles all programs; nothing is compiled afterwards.

        Args:
          wait: without it the return comes as soon as short prompts can be answered, and the programs for longer ones
            and for log-probabilities are compiled in a thread; a request that needs one waits for it.
        """
        self._rest = self._programs.compile(self._params)
        if wait:
            self._rest.result()

    def stats(self) -> EngineStats:
        """Returns what the engine does and did."""
        scheduler, cache = self._scheduler, self._cache
        with self._condition:
            waiting = len(self._waiting)
        return EngineStats(
            slots=self._programs.count,
            running=scheduler.running,
            waiting=waiting,
            submitted=self._submitted,
            refused=self._refused,
            tokens_read=scheduler.tokens_read,
            tokens_chosen=scheduler.tokens_chosen,
            steps=scheduler.steps,
            chunks=scheduler.chunks,
            programs=self._programs.compiled,
            prefix_lookups=scheduler.lookups,
            prefix_hits=scheduler.hits,
            prefix_tokens=scheduler.tokens_known,
            cache_entries=len(cache),
            cache_bytes=cache.bytes,
        )

    def close(self, finish: bool = True) -> None:
        """Ends the engine once all requests are answered; with `finish` False they are cancelled."""
        if self._rest is not None:
            self._rest.cancel()
        with self._condition:
            self._closing = True
            if not finish:
                for job in [*self._waiting, *self._scheduler.jobs]:
                    if job is not None:
                        job.ticket.cancel()
            self._condition.notify_all()
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finish=kind is None)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _job(self, request: Request, ticket: Ticket) -> Job:
        """Returns the checked request."""
        vocab = self._lm.config.vocab_size
        token_ids("prompt", request.tokens, vocab)
        seed_number(request.seed)
        if not all(text_list("stop", request.stop)):
            raise ValueError("a stop string is empty; leave it out")
        if request.logprobs is not None and not 0 <= request.logprobs <= min(MOST_LOGPROBS, vocab):
            raise ValueError(f"logprobs must lie in 0..{min(MOST_LOGPROBS, vocab)}, got {request.logprobs!r:.60}")
        start = self._start(request.state)
        key = self._zero_key if request.state is None else self._start_keys.key(start)
        keys = Keys.of(key, request.tokens, self._chunk)
        return Job(request, ticket, self._lm.tokenizer, start, keys)

    def _start(self, state: State | None) -> State:
        """Returns a start as the programs take it."""
        if state is None:
            return self._zero
        if isinstance(state.wkv, WKVState):
            kind = type(state.wkv).__name__.lower()
            raise ValueError(f"the engine takes states of plain matrices; this one is upscaled ({kind})")
        leaves = []
        for leaf, like in zip(state, self._zero, strict=True):
            if np.shape(leaf) != like.shape:
                raise ValueError(f"a state leaf has shape {np.shape(leaf)}, the model needs {like.shape}")
            fits = isinstance(leaf, np.ndarray | jax.Array) and leaf.dtype == like.dtype
            leaves.append(leaf if fits else np.asarray(leaf).astype(like.dtype))
        return State(*leaves)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            with self._condition:
                self._error = error
                waiting = list(self._waiting)
                self._waiting.clear()
            self._scheduler.fail(error)
            for job in waiting:
                job.ticket.put(error)

    def _turn(self) -> bool:
        """Admits requests and lets the scheduler go on; returns whether there is more to come."""
        scheduler = self._scheduler
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or scheduler.running or self._closing)
            if not self._waiting and not scheduler.running:
                return False
            overdue = [job for job in self._waiting if job.overdue is not None]
            for job in overdue:
                self._waiting.remove(job)
        for job in overdue:
            job.end(job.overdue or "cancelled", [], None)
        while scheduler.running < self._programs.count and (job := self._next()) is not None:
            scheduler.admit(job)
        scheduler.turn(bool(self._waiting))
        return True

    def _next(self) -> Job | None:
        with self._condition:
            return self._waiting.popleft() if self._waiting else None
