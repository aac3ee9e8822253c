"""Continuous batching, turn by turn: at most one chunk of one prompt is read, then every answer gets a few tokens."""

import time
from collections import deque
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array

from rwkv7_jax.finite import NONE, NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.decode_loop import pad_left
from rwkv7_jax.generation.generate import uncounted_ids
from rwkv7_jax.generation.sampling import SamplingArrays, SamplingFlags
from rwkv7_jax.generation.stop_strings import StopText, cut_tokens
from rwkv7_jax.inference.prefix_cache import Keys, Prefix, PrefixCache
from rwkv7_jax.inference.requests import FinishReason, Piece, Request, Result, Ticket, TokenLogprob
from rwkv7_jax.inference.slots import STEPS, Programs, Scores, idle_rows
from rwkv7_jax.non_finite_cause import cause
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer

Phase = Literal["reading", "answering", "settling"]
"""Settling: the answer is whole, and its tokens are read again, since a stop string cut it before the last one fed."""


class Job:
    """A request with its progress. Made by the thread that submits, then the engine's alone."""

    def __init__(self, request: Request, ticket: Ticket, tokenizer: Tokenizer, start: State, keys: Keys):
        self.request, self.ticket, self.start, self.keys = request, ticket, start, keys
        self.received, self.first_token = time.monotonic(), None
        self.phase: Phase = "reading"
        self.todo, self.position = request.tokens, 0
        """Tokens to read, and how many of them were."""
        self.cached, self.fed = 0, 0
        """Tokens of the prompt that were not read; tokens chosen, those after a stop string included."""
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.after_prompt: Prefix | None = None
        self._text = StopText(tokenizer, request.stop)
        self._tokenizer = tokenizer

    @property
    def overdue(self) -> FinishReason | None:
        """Why the request ends now, or None."""
        if self.ticket.cancelled:
            return "cancelled"
        deadline = self.request.deadline
        return "timeout" if deadline is not None and time.monotonic() >= deadline else None

    @property
    def stopped(self) -> bool:
        """Whether a stop string, or a token that ends a text, was met."""
        return self._text.hit

    def add(self, ids: list[int], logprobs: list[TokenLogprob]) -> None:
        """Passes on chosen tokens, up to one that completes a stop string."""
        self.fed += len(ids)
        if self.first_token is None and ids:
            self.first_token = time.monotonic()
        text, count = "", 0
        while count < len(ids) and not self._text.hit:
            text += self._text.push(ids[count : count + 1])
            count += 1
        self.tokens += ids[:count]
        self.logprobs += logprobs[:count]
        if count:
            self.ticket.put(Piece(text, ids[:count], logprobs[:count]))

    def kept(self) -> list[int]:
        """Ends the text; returns the tokens that it consists of."""
        if rest := self._text.finish():
            self.ticket.put(Piece(rest, [], []))
        return cut_tokens(self._tokenizer, self.tokens, self._text.text) if self._text.hit else self.tokens

    def end(self, reason: FinishReason, kept: list[int], state: State | None) -> None:
        """Hands over the result."""
        now, request = time.monotonic(), self.request
        if state is not None and not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in state):
            self.fail("the state is not finite")
            return
        whole = next((i for i, (a, b) in enumerate(zip(kept, self.tokens, strict=False)) if a != b), len(kept))
        self.ticket.put(
            Result(
                text=self._text.text,
                tokens=kept,
                finish_reason=reason,
                state=state,
                prompt_logprobs=self.prompt_logprobs if request.echo_logprobs else None,
                logprobs=None if request.logprobs is None else self.logprobs[:whole],
                prompt_tokens=len(request.tokens),
                cached_tokens=self.cached,
                first_token_s=(self.first_token or now) - self.received,
                total_s=now - self.received,
            )
        )

    def fail(self, what: str, params: Params | None = None) -> None:
        """Ends the request with an error that names the cause."""
        states = [State(*jax.tree.map(np.asarray, self.start))]
        if all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in states[0]):
            found = cause(params or {})
        else:
            found = "NaN or infinite numbers in the initial state; use a sound one"
        self.ticket.put(NonFiniteLogitsError(f"{what}: {found}"))


class Scheduler:
    """The slots and the jobs in them. All methods are for the engine's thread."""

    def __init__(self, programs: Programs, params: Params, tokenizer: Tokenizer, cache: PrefixCache):
        self.programs, self.params, self.cache = programs, params, cache
        self.jobs: list[Job | None] = [None] * programs.count
        self.steps = self.chunks = self.tokens_read = self.tokens_chosen = 0
        self._reading: deque[int] = deque()
        self._rows = idle_rows(programs.count)
        self._slots = programs.empty()
        vocab = programs.model.config.vocab_size
        self._no_logits = np.zeros(vocab, np.float32)
        self._weight = np.ones(vocab, np.float32)
        self._weight[uncounted_ids(tokenizer)] = 0
        self._eos_id = np.asarray(tokenizer.eos_id, np.int32)

    @property
    def running(self) -> int:
        """Number of slots in use."""
        return sum(job is not None for job in self.jobs)

    @property
    def free(self) -> bool:
        """Whether a slot is free."""
        return self.running < len(self.jobs)

    def admit(self, job: Job) -> None:
        """Gives a job a slot, at the longest beginning of its prompt that is known."""
        slot = self.jobs.index(None)
        self.jobs[slot] = job
        found = None if job.request.echo_logprobs else self.cache.find(job.keys)
        if found is None:
            self._place(slot, job.start, None)
        else:
            self._place(slot, found.state, found.logits)
            job.position = job.cached = found.length
        if job.position < len(job.todo):
            self._reading.append(slot)
        else:
            job.after_prompt = found
            self._begin_answer(slot, job)

    def turn(self, waiting: bool) -> None:
        """Reads one chunk, and chooses tokens. waiting: whether a request has no slot yet."""
        for slot, job in enumerate(self.jobs):
            if job is not None and (reason := job.overdue) is not None:
                self._finish(slot, job, reason)
        if self._reading:
            slot = self._reading.popleft()
            if (job := self.jobs[slot]) is not None and self._read(slot, job):
                self._reading.append(slot)
        if self._rows.active.any():
            self._decode(waiting)

    def fail(self, error: Exception) -> None:
        """Ends all jobs with an error."""
        for job in self.jobs:
            if job is not None:
                job.ticket.put(error)
        self.jobs = [None] * len(self.jobs)

    def _place(self, slot: int, state: State, logits: Array | None) -> None:
        given = self._no_logits if logits is None else logits
        self._slots = self.programs.place(self._slots, np.int32(slot), state, given)

    def _take(self, slot: int) -> tuple[State, Array]:
        return self.programs.take(self._slots, np.int32(slot))

    def _read(self, slot: int, job: Job) -> bool:
        """Reads a chunk; returns whether more are to come."""
        chunk, begin, total = self.programs.chunk, job.position, len(job.todo)
        end = min(total, begin - begin % chunk + chunk)
        ids = list(job.todo[begin:end])
        size = next(size for size in self.programs.read if size >= len(ids))
        tokens, valid = pad_left([ids], size)
        number = np.int32(slot)
        self._slots, x = self.programs.read[size](self.params, self._slots, number, tokens, valid)
        self.chunks += 1
        self.tokens_read += len(ids)
        job.position = end
        if job.phase == "settling":
            x.block_until_ready()
            if end == total:
                self._release(slot, job, "stop", list(job.todo), jax.device_get(self._take(slot)[0]))
            return end < total
        if job.request.echo_logprobs and not self._score(job, begin, end, x):
            self._leave(slot)
            return False
        if end < total:
            x.block_until_ready()
            if self.cache.wanted(job.keys, end, self._state_size):
                self.cache.put(job.keys, Prefix(end, self._take(slot)[0], None))
            return True
        self._slots = self.programs.head(self.params, self._slots, number, x)
        job.after_prompt = Prefix(total, *self._take(slot))
        self.cache.put(job.keys, job.after_prompt)
        self._begin_answer(slot, job)
        return False

    @property
    def _state_size(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._slots.layers)) // len(self.jobs)

    def _score(self, job: Job, begin: int, end: int, x: Array) -> bool:
        """Notes the scores of the prompt's tokens after those from begin to end; returns whether all are finite."""
        tokens, chunk = job.request.tokens, self.programs.chunk
        wanted = tokens[begin + 1 : end + 1]
        first = chunk - (end - begin)
        targets = np.zeros(chunk, np.int32)
        targets[first : first + len(wanted)] = wanted
        scores, finite = jax.device_get(self.programs.score(self.params, x, targets, np.int32(first)))
        if not finite[first:].all():
            job.fail(f"the logits of the prompt's token {begin + int(np.argmin(finite[first:])) + 1} are not finite")
            return False
        places = range(first, first + len(wanted))
        job.prompt_logprobs += [_told(scores, i, token, job) for i, token in zip(places, wanted, strict=True)]
        return True

    def _begin_answer(self, slot: int, job: Job) -> None:
        settings, rows = job.request.sampling, self._rows
        job.phase = "answering"
        if settings.max_new_tokens == 0:
            self._finish(slot, job, "length")
            return
        rows.active[slot], rows.seed[slot], rows.step[slot] = True, job.request.seed, 0
        rows.left[slot], rows.scored[slot] = settings.max_new_tokens, job.request.logprobs is not None
        for into, value in zip(rows.flags, SamplingFlags.of(settings), strict=True):
            into[slot] = value
        for into, value in zip(rows.arrays, SamplingArrays.of(settings), strict=True):
            into[slot] = value

    def _decode(self, waiting: bool) -> None:
        """Chooses tokens: one where a prompt is read beside or an answer begins, else several."""
        rows, active = self._rows, np.flatnonzero(self._rows.active)
        limit = 1 if self._reading or (rows.step[active] == 0).any() else STEPS
        if waiting:
            limit = min(limit, int(rows.left[active].min()))
        self._slots, chosen = self.programs.decode(
            self.params, self._slots, rows, np.int32(limit), self._eos_id, self._weight
        )
        tokens, length, going, wrong = jax.device_get((chosen.tokens, chosen.length, chosen.active, chosen.wrong))
        scores = jax.device_get(chosen.scores) if rows.scored[active].any() else chosen.scores
        self.steps += int(length.max())
        self.tokens_chosen += int(length.sum())
        for slot in map(int, active):
            job, count = self.jobs[slot], int(length[slot])
            assert job is not None
            ids = tokens[slot, :count].tolist()
            told = job.request.logprobs is not None
            job.add(ids, [_told(scores, (int(slot), i), token, job) for i, token in enumerate(ids)] if told else [])
            rows.step[slot] += count
            rows.left[slot] -= count
            rows.active[slot] = going[slot] and not job.stopped
            if wrong[slot] != NONE and not job.stopped:
                job.fail(f"the logits are not finite after {wrong[slot]} generated tokens", self.params)
                self._leave(slot)
            elif not rows.active[slot]:
                whole = not job.stopped and rows.left[slot] == 0
                self._finish(slot, job, "length" if whole else "stop")

    def _finish(self, slot: int, job: Job, reason: FinishReason) -> None:
        """Ends an answer; where its state is wanted and tokens were fed beyond it, they are read again."""
        self._rows.active[slot] = False
        if job.phase == "settling" or job.phase == "reading":
            self._release(slot, job, reason, job.kept(), None)
            return
        kept = job.kept()
        if not job.request.keep_state:
            self._release(slot, job, reason, kept, None)
        elif job.fed == len(kept) and kept == job.tokens:
            self._release(slot, job, reason, kept, jax.device_get(self._take(slot)[0]))
        elif job.after_prompt is not None and not kept:
            self._release(slot, job, reason, kept, jax.device_get(job.after_prompt.state))
        else:
            assert job.after_prompt is not None
            self._place(slot, job.after_prompt.state, None)
            job.phase, job.todo, job.position = "settling", tuple(kept), 0
            self._reading.append(slot)

    def _release(self, slot: int, job: Job, reason: FinishReason, kept: list[int], state: State | None) -> None:
        self._leave(slot)
        job.end(reason, kept, state)

    def _leave(self, slot: int) -> None:
        self.jobs[slot] = None
        self._rows.active[slot] = False
        if slot in self._reading:
            self._reading.remove(slot)


def _told(scores: Scores, at: int | tuple[int, int], token: int, job: Job) -> TokenLogprob:
    count = job.request.logprobs or 0
    likeliest = zip(scores.ids[at][:count].tolist(), scores.likeliest[at][:count].tolist(), strict=True)
    return TokenLogprob(token, float(scores.chosen[at]), tuple(likeliest))
