"""Turns of the scheduler, one by one: who reads, who answers, and when."""

import time

import pytest

from rwkv7_jax.inference.prefix_cache import Keys, PrefixCache
from rwkv7_jax.inference.programs import programs_for
from rwkv7_jax.inference.requests import Piece, Ticket
from rwkv7_jax.inference.scheduler import Job, Scheduler


@pytest.fixture
def make_scheduler(tiny):
    def make(cache_bytes=0):
        model, params = tiny.for_decoding
        return Scheduler(programs_for(model, params, 3, 128), params, tiny.tokenizer, PrefixCache(cache_bytes, 128))

    return make


@pytest.fixture
def scheduler(make_scheduler):
    return make_scheduler()


@pytest.fixture
def job(tiny, request_of):
    def make(text, **settings):
        request = request_of(text, **settings)
        return Job(request, Ticket(lambda: None), tiny.tokenizer, tiny.zero_state(), Keys.of(b"", request.tokens, 128))

    return make


def pieces(one):
    heard = []
    one.ticket.on_event(lambda event: heard.append(event) if isinstance(event, Piece) and event.tokens else None)
    return heard


def test_long_prompts_take_turns_and_stop_nobody(scheduler, job):
    long, other, short = job("a" * 1000), job("b" * 1000), job("c", max_new_tokens=3)
    for one in (long, other, short):
        scheduler.admit(one)
    heard = [pieces(one) for one in (long, other, short)]
    read = []
    while not short.ticket.done:
        scheduler.turn(False)
        read.append((long.position, other.position))
    assert read == [(128, 0), (128, 128), (128, 128), (256, 128), (256, 256)]
    assert [len(one) for one in heard] == [0, 0, 3]
    assert scheduler.steps == 3
    while not (long.ticket.done and other.ticket.done):
        scheduler.turn(False)
    assert (scheduler.tokens_read, scheduler.running) == (2001, 0)


def test_short_prompts_are_read_in_one_turn(scheduler, job):
    jobs = [job("abc", max_new_tokens=4) for _ in range(3)]
    for one in jobs:
        scheduler.admit(one)
    scheduler.turn(False)
    assert [len(one.tokens) for one in jobs] == [1, 1, 1]
    assert scheduler.chunks == 3


def test_a_prompt_that_several_jobs_have_is_read_once(make_scheduler, job):
    scheduler = make_scheduler(1 << 22)
    jobs = [job("ab" * 200, max_new_tokens=4, temperature=1.0, seed=i) for i in range(3)]
    for one in jobs:
        scheduler.admit(one)
    while not all(one.ticket.done for one in jobs):
        scheduler.turn(False)
    assert scheduler.tokens_read == 400
    assert scheduler.tokens_known == 800
    assert scheduler.lookups == 3


def test_a_cancelled_job_frees_its_slot_at_the_next_turn(scheduler, job):
    reading, answering = job("a" * 1000), job("b", max_new_tokens=10**6, temperature=1.0)
    for one in (answering, reading):
        scheduler.admit(one)
    scheduler.turn(False)
    assert scheduler.running == 2
    chosen = len(answering.tokens)
    for one in (reading, answering):
        one.ticket.cancel()
    scheduler.turn(False)
    assert scheduler.running == 0
    results = [one.ticket.result(0) for one in (reading, answering)]
    assert [result.finish_reason for result in results] == ["cancelled"] * 2
    assert [len(result.tokens) for result in results] == [0, chosen]


def test_a_deadline_ends_a_job(scheduler, job):
    late = job("a", max_new_tokens=10**6, deadline=time.monotonic() + 0.05)
    scheduler.admit(late)
    while not late.ticket.done:
        scheduler.turn(False)
    assert late.ticket.result().finish_reason in ("timeout", "stop")


def test_where_requests_wait_no_slot_is_left_idle(scheduler, job):
    """A call ends with the first answer that is as long as it may be."""
    jobs = [job("a", max_new_tokens=3, seed=1), job("b", max_new_tokens=200, temperature=1.0)]
    for one in jobs:
        scheduler.admit(one)
    while not jobs[0].ticket.done:
        scheduler.turn(True)
    assert scheduler.steps <= 4
