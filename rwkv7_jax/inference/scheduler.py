"""Continuous batching, turn by turn: at most one chunk of prompts is read, then every answer gets a token or a few."""

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
from rwkv7_jax.inference.programs import Programs
from rwkv7_jax.inference.requests import FinishReason, Piece, Request, Result, Ticket, TokenLogprob
from rwkv7_jax.inference.slots import STEPS, Scores, idle_rows
from rwkv7_jax.non_finite_cause import cause
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer

SHORT = 32
"""Ends of prompts that have fewer tokens are not kept for others: they are read in one go."""
DISPATCH_S = 0.04
"""Seconds that choosing several tokens in one call should take: pieces of answers come so often, and requests join."""
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
        text, count = self._text.push(ids), len(ids)
        if self._text.hit:
            again, count = StopText(self._tokenizer, self.request.stop), 0
            again.push(self.tokens)
            while not again.hit:
                again.push(ids[count : count + 1])
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


def _finite(state: State) -> bool:
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in state)


class Scheduler:
    """The slots and the jobs in them. All methods are for the engine's thread."""

    def __init__(self, programs: Programs, params: Params, tokenizer: Tokenizer, cache: PrefixCache):
        self.programs, self.params, self.cache = programs, params, cache
        self.jobs: list[Job | None] = [None] * programs.count
        self.steps = self.chunks = self.tokens_read = self.tokens_chosen = 0
        self.lookups = self.hits = self.tokens_known = 0
        self._reading: deque[int] = deque()
        self._rows, self._step_s = idle_rows(programs.count), DISPATCH_S / 4
        """How each slot goes on, and seconds that a step takes where nothing delays it."""
        self._slots, self._cause = programs.empty(), ""
        vocab = programs.model.config.vocab_size
        self._no_logits = np.zeros(vocab, np.float32)
        self._weight = np.ones(vocab, np.float32)
        self._weight[uncounted_ids(tokenizer)] = 0
        self._eos_id = np.asarray(tokenizer.eos_id, np.int32)

    @property
    def running(self) -> int:
        """Number of slots in use."""
        return sum(job is not None for job in self.jobs)

    def admit(self, job: Job) -> None:
        """Gives a job a slot; one must be free."""
        slot = self.jobs.index(None)
        self.jobs[slot] = job
        self._place(slot, job.start, None)
        self._reading.append(slot)

    def turn(self, waiting: bool) -> None:
        """Reads one chunk, or several short ends, and chooses tokens. waiting: whether a request has no slot yet."""
        for slot, job in enumerate(self.jobs):
            if job is not None and (reason := job.overdue) is not None:
                self._finish(slot, job, reason)
        room = self.programs.chunk
        while self._reading and room:
            slot = self._reading[0]
            job = self.jobs[slot]
            assert job is not None
            if self._jump(slot, job):
                self._reading.popleft()
                self._begin_answer(slot, job)
                continue
            end = min(len(job.todo), (job.position // self.programs.chunk + 1) * self.programs.chunk)
            size = next(size for size in self.programs.read if size >= end - job.position)
            if size > room:
                break
            room -= size
            self._reading.popleft()
            if self._read(slot, job, end, size):
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

    def _jump(self, slot: int, job: Job) -> bool:
        """Goes on from the longest beginning of a prompt that is known by now; returns whether that is all of it."""
        if job.phase != "reading" or job.request.echo_logprobs:
            return False
        found = self.cache.find(job.keys, job.position)
        if found is None:
            return False
        self._place(slot, found.state, found.logits)
        job.cached += found.length - job.position
        job.position = found.length
        if found.length < len(job.todo):
            return False
        job.after_prompt = found
        return True

    def _read(self, slot: int, job: Job, end: int, size: int) -> bool:
        """Reads a prompt on to `end` by the program for `size` tokens; returns whether more are to come."""
        begin, total = job.position, len(job.todo)
        ids = list(job.todo[begin:end])
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
        if job.request.keep_state or (self.cache.limit and total >= SHORT):
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
            number = begin + int(np.argmin(finite[first:])) + 1
            self._fail(job, f"the logits of the prompt's token {number} are not finite")
            return False
        places = range(first, first + len(wanted))
        job.prompt_logprobs += [_told(scores, i, token, job) for i, token in zip(places, wanted, strict=True)]
        return True

    def _begin_answer(self, slot: int, job: Job) -> None:
        settings, rows = job.request.sampling, self._rows
        job.phase = "answering"
        self.lookups += not job.request.echo_logprobs
        self.hits += job.cached > 0
        self.tokens_known += job.cached
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
        many = max(2, min(STEPS, int(DISPATCH_S / self._step_s)))
        limit = 1 if self._reading or (rows.step[active] == 0).any() else many
        if waiting:
            limit = min(limit, int(rows.left[active].min()))
        begun = time.perf_counter()
        self._slots, chosen = self.programs.decode(
            self.params, self._slots, rows, np.int32(limit), self._eos_id, self._weight
        )
        tokens, length, going, wrong = jax.device_get((chosen.tokens, chosen.length, chosen.active, chosen.wrong))
        scores = jax.device_get(chosen.scores) if rows.scored[active].any() else chosen.scores
        count = int(length.max())
        self.steps += count
        if count > 1:
            self._step_s = min((time.perf_counter() - begun) / count, 1.1 * self._step_s)
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
                self._fail(job, f"the logits are not finite after {wrong[slot]} generated tokens")
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
        kept, request, before = job.kept(), job.request, job.after_prompt
        whole = job.fed == len(kept) and kept == job.tokens
        if whole and not self.cache.exact:
            keys = Keys.of(job.keys.chunks[0], (*request.tokens, *kept), self.programs.chunk)
            self.cache.put(keys, Prefix(len(keys.tokens), *self._take(slot)))
        if not request.keep_state:
            self._release(slot, job, reason, kept, None)
        elif whole or before is None:
            self._release(slot, job, reason, kept, jax.device_get(self._take(slot)[0]))
        elif not kept:
            self._release(slot, job, reason, kept, jax.device_get(before.state))
        else:
            self._place(slot, before.state, None)
            job.phase, job.todo, job.position = "settling", tuple(kept), 0
            self._reading.append(slot)

    def _release(self, slot: int, job: Job, reason: FinishReason, kept: list[int], state: State | None) -> None:
        self._leave(slot)
        if state is None or _finite(state):
            job.end(reason, kept, state)
        else:
            self._fail(job, "the state after the answer is not finite")

    def _fail(self, job: Job, what: str) -> None:
        """Ends a job with an error that names the cause."""
        if not _finite(job.start):
            found = "NaN or infinite numbers in the initial state; use a sound one"
        else:
            found = self._cause = self._cause or cause(self.params)
        job.ticket.put(NonFiniteLogitsError(f"{what}: {found}"))

    def _leave(self, slot: int) -> None:
        self.jobs[slot] = None
        self._rows.active[slot] = False
        if slot in self._reading:
            self._reading.remove(slot)


def _told(scores: Scores, at: int | tuple[int, int], token: int, job: Job) -> TokenLogprob:
    count = job.request.logprobs or 0
    likeliest = zip(scores.ids[at][:count].tolist(), scores.likeliest[at][:count].tolist(), strict=True)
    return TokenLogprob(token, float(scores.chosen[at]), tuple(likeliest))
