"""The engine: answers of `generate`, independent of neighbours and of the cache; no compilation; every way to end."""

import gc
import os
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.build import EMBEDDED
from rwkv7_jax import LanguageModel, SamplingParams, State
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation.generate import generate_text
from rwkv7_jax.inference.engine import Engine, Piece, QueueFull, Request
from rwkv7_jax.wkv_state import Offset

COUNT = int(os.environ.get("RWKV7_TEST_REQUESTS", "60"))
SETTINGS = [
    {},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 30, "presence_penalty": 0.4, "frequency_penalty": 0.3},
]
TEXT = "Mira lives in Oslo. Tom has 3 red boats and 4 blue ones. "


@pytest.fixture(scope="module")
def student():
    return LanguageModel.load(EMBEDDED["pocket/student"])


def mixed(count, seed, sizes=(2, 20, 60), **options):
    """(text, settings) of requests of all kinds, in random order."""
    draw = random.Random(seed)
    for i in range(count):
        begin = draw.randrange(30)
        text = (TEXT * 40)[begin : begin + draw.choice(sizes)]
        own = {"seed": draw.randrange(2**32), "stop": draw.choice([(), ("t ", "ab"), ("o",)]), **options}
        yield text, {**SETTINGS[i % len(SETTINGS)], "max_new_tokens": 24, **own}


def test_texts_are_those_of_generate_alone(student, request_of):
    cases = list(mixed(16, 1))
    with Engine(student, slots=4) as engine:
        tickets = []
        for text, settings in cases:
            request = request_of("x", **settings)
            tickets.append(engine.submit(Request(**vars(request) | {"tokens": tuple(student.encode(text))})))
        results = [ticket.result() for ticket in tickets]
    for (text, settings), result in zip(cases, results, strict=True):
        assert result.text == student.generate(text, **{"temperature": 0, **settings}), (text, settings)
    assert {result.finish_reason for result in results} == {"stop", "length"}


def test_an_answer_alone_has_the_bits_of_one_beside_others(student, same_bits):
    """With kernels that read the rows of the slots that answer, and no others."""
    prompt, sampled = tuple(student.encode("Tom has")), SamplingParams(temperature=0.9, top_p=0.9, max_new_tokens=30)
    requests = [Request(prompt, sampled, seed=seed, logprobs=3, keep_state=True) for seed in range(4)]
    with Engine(student, slots=4, cache_bytes=0) as engine:
        tickets = [engine.submit(request) for request in requests]
        beside = [ticket.result() for ticket in tickets]
        for request, wanted in zip(requests, beside, strict=True):
            found = engine.submit(request).result()
            assert (found.tokens, found.logprobs) == (wanted.tokens, wanted.logprobs)
            same_bits(found.state, wanted.state)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_other_weights_give_the_texts_of_generate(tiny_checkpoint, request_of, kind):
    how = {"quantise": "int8"} if kind == "int8" else {"dtype": "bfloat16"}
    lm = LanguageModel.load(tiny_checkpoint, wkv="scan", **how)
    with Engine(lm, slots=2) as engine:
        tickets = [engine.submit(request_of(text)) for text in ("Hello", "a", TEXT[:40])]
        assert [ticket.result().text for ticket in tickets] == [
            lm.generate(text, temperature=0, max_new_tokens=8) for text in ("Hello", "a", TEXT[:40])
        ]


def test_an_answer_does_not_depend_on_its_neighbours(make_engine, request_of, some_state, same_bits):
    text, wanted = TEXT * 4, {"logprobs": 20, "keep_state": True, "state": some_state, "max_new_tokens": 20}
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), some_state)
    for settings in SETTINGS:
        with make_engine() as engine:
            alone = engine.submit(request_of(text, **wanted, **settings)).result()
        with make_engine() as engine:
            before = [engine.submit(request_of(t, **s)) for t, s in mixed(4, 2, sizes=(3, 150))]
            poison = engine.submit(request_of("x", state=broken))
            found = engine.submit(request_of(text, **wanted, **settings))
            after = [engine.submit(request_of(t, **s, logprobs=3)) for t, s in mixed(4, 3)]
            company = found.result()
            assert all(ticket.result().tokens is not None for ticket in before + after)
            with pytest.raises(NonFiniteLogitsError):
                poison.result()
        assert (alone.text, alone.tokens, alone.finish_reason) == (company.text, company.tokens, company.finish_reason)
        same_bits((alone.logprobs, alone.state), (company.logprobs, company.state))


def test_a_cached_prefix_changes_no_bit(make_engine, request_of, some_state, same_bits):
    prefix = (TEXT * 6)[:300]
    texts = [prefix + "one", prefix + "another question", prefix + "one", prefix[:256], (TEXT * 3)[:100]]
    wanted = {"logprobs": 5, "keep_state": True, "temperature": 0.9, "seed": 7}
    with make_engine() as cold, make_engine(cache_bytes=1 << 22) as warm:
        for number, text in enumerate(texts):
            for state in (None, some_state):
                plain, cached = (e.submit(request_of(text, **wanted, state=state)).result() for e in (cold, warm))
                assert plain[:3] == cached[:3]
                same_bits((plain.state, plain.logprobs), (cached.state, cached.logprobs))
                assert (plain.cached_tokens, cached.cached_tokens) == (0, [0, 256, 303, 128, 0][number])
        equal = jax.tree.map(np.copy, some_state)
        assert warm.submit(request_of(texts[0], state=equal)).result().cached_tokens == 303
        stats = warm.stats()
        assert stats.prefix_hits == 7
        assert stats.prefix_tokens == 2 * (256 + 303 + 128) + 303
        assert 0 < stats.cache_bytes <= 1 << 22
        assert cold.stats().cache_entries == 0


def test_ends_of_answers_go_on_unless_prefixes_must_be_exact(make_engine, request_of):
    with make_engine(cache_bytes=1 << 22, exact_prefixes=False) as engine, make_engine() as cold:
        first = engine.submit(request_of("Hello there", max_new_tokens=5)).result()
        longer = Request(**vars(request_of("x")) | {"tokens": (*b"Hello there", *first.tokens, 65)})
        second = engine.submit(longer).result()
        assert second.cached_tokens == 11 + len(first.tokens)
        assert second.text == cold.submit(longer).result().text


def test_nothing_is_compiled_after_the_warm_up(tiny, make_engine, request_of, some_state):
    programs = []

    def note(name, _, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            programs.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    tiny.for_decoding  # noqa: B018 - the weights are made ready once
    begun = len(programs)
    with make_engine(cache_bytes=1 << 18, queue=COUNT) as engine:
        engine.warm_up()
        assert len(programs) - begun <= engine.stats().programs <= 12
        compiled, draw, tickets = len(programs), random.Random(5), []
        for _, (text, settings) in zip(range(COUNT), mixed(COUNT, 6, sizes=(1, 9, 33, 130, 300, 999)), strict=True):
            more = {"logprobs": draw.choice([None, 0, 20]), "echo_logprobs": draw.random() < 0.2}
            more |= {"keep_state": draw.random() < 0.3, "state": draw.choice([None, some_state])}
            settings["max_new_tokens"] = draw.choice([0, 1, 2, 7, 50])
            tickets.append(engine.submit(request_of(text, **settings, **more)))
            if draw.random() < 0.1:
                draw.choice(tickets).cancel()
        reasons = {ticket.result().finish_reason for ticket in tickets}
        assert reasons <= {"stop", "length", "cancelled"}
        assert len(programs) == compiled
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.submitted) == (0, 0, COUNT)
        assert stats.programs <= 12


@pytest.mark.parametrize("stop", [(), ("e",), ("\n", "a ")])
def test_state_and_tokens_are_those_of_the_text(tiny, engine, request_of, some_state, stop):
    settings = {"temperature": 1.0, "seed": 4, "max_new_tokens": 40}
    result = engine.submit(request_of("Hello", state=some_state, stop=stop, keep_state=True, **settings)).result()
    request = request_of("", **settings)
    expected = generate_text(
        *tiny.for_decoding, tiny.tokenizer, ["Hello"], jax.tree.map(jnp.asarray, some_state), jax.random.key(4),
        request.sampling, stop=stop,
    )  # fmt: skip
    assert (result.text, result.tokens) == (expected.texts[0], expected.tokens[0])
    assert (result.finish_reason == "stop") == expected.finished[0]
    for found, like in zip(result.state, expected.state, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, like[:, 0], rtol=1e-4, atol=1e-5)


def test_logprobs_of_prompt_and_answer(tiny, engine, request_of):
    text = TEXT * 3
    result = engine.submit(
        request_of(text, logprobs=3, echo_logprobs=True, temperature=1.0, presence_penalty=2.0, max_new_tokens=5)
    ).result()
    ids = [*text.encode(), *result.tokens]
    log_p = np.asarray(jax.nn.log_softmax(tiny.logits(ids)[0]))
    told = [*result.prompt_logprobs, *result.logprobs]
    assert [one.token for one in told] == ids[1:]
    for row, one in zip(log_p, told, strict=False):
        best = np.argsort(-row, kind="stable")[:3]
        assert [token for token, _ in one.likeliest] == best.tolist()
        np.testing.assert_allclose([one.logprob, *(p for _, p in one.likeliest)], row[[one.token, *best]], atol=2e-5)


def test_the_prompt_alone(engine, request_of):
    result = engine.submit(request_of("Hi", echo_logprobs=True, logprobs=0, max_new_tokens=0, keep_state=True)).result()
    assert (result.text, result.tokens, result.finish_reason, result.logprobs) == ("", [], "length", [])
    assert [one[::2] for one in result.prompt_logprobs] == [(ord("i"), ())]
    assert isinstance(result.state, State)


def test_pieces_join_to_the_text(engine, request_of):
    ticket = engine.submit(request_of("Hello", temperature=1.0, max_new_tokens=60, logprobs=1, stop=("zq",)))
    pieces, result = list(ticket.pieces()), ticket.result()
    assert "".join(piece.text for piece in pieces) == result.text
    assert [token for piece in pieces for token in piece.tokens][: len(result.tokens)] == result.tokens
    assert [one.token for one in result.logprobs] == result.tokens
    assert result.prompt_tokens == 5
    assert 0 < result.first_token_s <= result.total_s
    heard = []
    ticket.on_event(heard.append)
    assert heard == [*pieces, result]


def test_events_come_in_order(engine, request_of):
    heard = []
    ticket = engine.submit(request_of("Hello", max_new_tokens=30))
    ticket.on_event(heard.append)
    result = ticket.result()
    while len(heard) == 0 or heard[-1] is not result:
        time.sleep(0.001)
    assert all(isinstance(event, Piece) for event in heard[:-1])
    assert "".join(event.text for event in heard[:-1]) == result.text


def test_a_callback_that_raises_cancels_its_request(engine, request_of):
    ticket = engine.submit(request_of("Hello", max_new_tokens=10**6))
    ticket.on_event(lambda event: 1 / 0)
    assert ticket.result().finish_reason in ("cancelled", "stop")
    assert engine.submit(request_of("a")).result().finish_reason in ("length", "stop")


def test_a_broken_state_ends_its_own_request(engine, request_of, some_state):
    broken = some_state._replace(wkv=np.full_like(some_state.wkv, np.inf))
    failed, sound = engine.submit(request_of("a", state=broken)), engine.submit(request_of("a"))
    with pytest.raises(NonFiniteLogitsError, match=r"after 0 generated tokens: NaN or infinite .* initial state"):
        failed.result()
    with pytest.raises(NonFiniteLogitsError):
        list(failed.pieces())
    assert sound.result().tokens
    with pytest.raises(NonFiniteLogitsError, match="the prompt's token 1 "):
        engine.submit(request_of("ab", state=broken, echo_logprobs=True)).result()
    with pytest.raises(NonFiniteLogitsError, match="the state after the answer is not finite"):
        engine.submit(request_of("ab", state=broken, keep_state=True, max_new_tokens=0)).result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ()}, "prompt: the text has no token"),
        ({"tokens": (256,)}, "prompt: token 256 is outside the vocabulary of 256"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"stop": ("",)}, "a stop string is empty"),
        ({"logprobs": 21}, r"logprobs must lie in 0\.\.20, got 21"),
    ],
)
def test_wrong_requests(engine, request_of, change, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(Request(**vars(request_of("a")) | change))


def test_wrong_states(engine, request_of, some_state):
    with pytest.raises(ValueError, match=r"a state leaf has shape \(1, 8\), the model needs \(2, 8\)"):
        engine.submit(request_of("a", state=some_state._replace(att_shift=some_state.att_shift[:1])))
    upscaled = some_state._replace(wkv=Offset(some_state.wkv, some_state.wkv))
    with pytest.raises(ValueError, match=r"plain matrices; this one is upscaled \(offset\)"):
        engine.submit(request_of("a", state=upscaled))


def test_wrong_engines(make_engine):
    with pytest.raises(ValueError, match="slots and queue must be at least 1"):
        make_engine(slots=0)
    with pytest.raises(ValueError, match="chunks a multiple of 128"):
        make_engine(prefill_chunk=100)


def test_ways_to_end(make_engine, request_of):
    engine = make_engine(slots=3, queue=3)
    endless = [
        engine.submit(request_of("q" * (i + 1), max_new_tokens=10**6, temperature=1.0, seed=i)) for i in range(2)
    ]
    late = engine.submit(request_of("Hello", max_new_tokens=10**6, deadline=time.monotonic() - 1))
    assert late.result().finish_reason == "timeout"
    endless[0].cancel()
    assert endless[0].result().finish_reason in ("cancelled", "stop")
    engine.close(finish=False)
    assert endless[1].result().finish_reason in ("cancelled", "stop")
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(request_of("a"))


def test_closing_finishes_what_waits_too(make_engine, request_of):
    with make_engine(queue=20) as engine:
        tickets = [engine.submit(request_of(f"number {i}")) for i in range(12)]
    assert all(ticket.done for ticket in tickets)
    assert len({ticket.result().finish_reason for ticket in tickets} - {"stop", "length"}) == 0


def test_what_the_device_raises_reaches_everyone(make_engine, request_of, monkeypatch):
    engine = make_engine()

    def broken(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(engine._scheduler, "turn", broken)
    with pytest.raises(MemoryError):
        engine.submit(request_of("a")).result()
    engine._thread.join()
    with pytest.raises(RuntimeError, match="the engine has failed: no memory"):
        engine.submit(request_of("a"))


def test_memory_stays_flat(make_engine, request_of):
    with make_engine(cache_bytes=1 << 16) as engine:

        def arrays():
            for i in range(20):
                engine.submit(request_of(f"{i} {TEXT * 3}", keep_state=True, stop=("e",))).result()
            gc.collect()  # what other tests left is not counted
            return min(live_arrays())

        def live_arrays():
            for _ in range(50):  # the engine's thread lets go of its last job after the answer is there
                yield len(jax.live_arrays())
                time.sleep(0.005)

        arrays()
        before = arrays()
        assert arrays() <= before + 2


def test_a_full_queue_says_how_many_wait(make_engine, request_of):
    with make_engine(queue=2) as engine:
        blocked = [engine.submit(request_of("q", max_new_tokens=10**6, temperature=1.0, seed=i)) for i in range(2)]
        refused = None
        for i in range(200):
            try:
                blocked.append(engine.submit(request_of("q" * i + "a", max_new_tokens=10**6)))
            except QueueFull as error:
                refused = error
                break
        assert refused is not None
        assert refused.waiting == 2
        assert "2 requests wait already" in str(refused)
        assert engine.stats().refused == 1
        for ticket in blocked:
            ticket.cancel()
