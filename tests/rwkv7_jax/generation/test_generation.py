"""Generation against naive loops, sampling against its formulas; rows, chunks and batches that must not matter."""

import dataclasses
import functools
import inspect
import itertools
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkv7_jax import RWKV7, RWKV7Config, State, bucketing, streamed, zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation import decode_loop, sampling
from rwkv7_jax.generation.generate import (
    SamplingParams,
    compile_stream,
    for_decoding,
    generate,
    generate_text,
    sample_logits,
    stream,
    uncounted_ids,
)
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays
from rwkv7_jax.generation.stop_strings import StopText, cut_tokens
from rwkv7_jax.generation.weights import decoding_shapes, decoding_weights, one_by_one
from rwkv7_jax.model import init_params, unstack_blocks
from rwkv7_jax.tokenizer import ByteTokenizer

VOCAB = 256
CONFIG = RWKV7Config(VOCAB, 2, 32, head_size=16, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8, scan_layers=False)
KEY = jax.random.key(0)
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
RANDOM = SamplingParams(
    temperature=0.9, top_p=0.9, top_k=20, frequency_penalty=0.4, presence_penalty=0.2, max_new_tokens=12
)
PROMPTS = [[5, 6, 7], [9], [101, 7, 43, 11, 12, 200, 3]]


@pytest.fixture(scope="module")
def model():
    return RWKV7(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """Random weights, no two alike, about as large as trained ones."""
    rng = np.random.default_rng(1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, tokens, zero_state(CONFIG, 1))["params"]
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def state():
    keys = jax.random.split(jax.random.key(3), 3)
    return State(*(jax.random.normal(k, x.shape) for k, x in zip(keys, zero_state(CONFIG, len(PROMPTS)), strict=True)))


def run(model, params, config=GREEDY, *, state=None, prompts=PROMPTS, key=0, **options):
    """`generate` with this file's usual arguments: the same few programs serve all tests."""
    return generate(model, params, prompts, state, jax.random.key(key), config, **options)


def row(state, i):
    return jax.tree.map(lambda leaf: leaf[:, i : i + 1], state)


@functools.partial(jax.jit, static_argnums=0)
def step(model, params, tokens, state):
    return model.apply({"params": params}, tokens, state)


def read(model, params, ids, state):
    """One token after another: the naive prefill."""
    logits = None
    for token in ids:
        logits, state = step(model, params, jnp.full((1, 1), token, jnp.int32), state)
    assert logits is not None
    return np.asarray(logits[0, 0]), state


def naive_greedy(model, params, prompt, state, count):
    logits, state = read(model, params, prompt, state)
    out = []
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits, state = read(model, params, out[-1:], state)
    return out, logits, state


def naive_cut(tokens, stops):
    """Up to the first place where a stop sequence is complete, without the longest one that ends there."""
    for end in range(1, len(tokens) + 1):
        lengths = [len(stop) for stop in stops if tokens[:end][-len(stop) :] == stop]
        if lengths:
            return tokens[: end - max(lengths)]
    return tokens


def assert_close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_greedy_is_argmax_token_by_token_with_a_state_a_row(model, params, state):
    result = generate(model, params, PROMPTS, state, jax.random.key(0), GREEDY, eos_id=None)
    for i, prompt in enumerate(PROMPTS):
        tokens, logits, end = naive_greedy(model, params, prompt, row(state, i), GREEDY.max_new_tokens)
        assert result.tokens[i] == tokens
        assert_close(result.logits[i], logits)
        assert_close(row(result.state, i), end)
    assert result.finished == [False] * 3
    assert len({tuple(t) for t in result.tokens}) == 3


@pytest.mark.parametrize("config", [GREEDY, RANDOM], ids=["greedy", "random"])
def test_a_row_does_not_depend_on_its_neighbours(model, params, state, config):
    keys = jax.random.split(jax.random.key(5), len(PROMPTS))
    together = generate(model, params, PROMPTS, state, keys, config)
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model, params, [prompt], row(state, i), keys[i : i + 1], config)
        assert alone.tokens[0] == together.tokens[i]
        assert_close(alone.state, row(together.state, i))


def test_one_key_is_folded_with_the_row(model, params):
    key = jax.random.key(11)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(3)])
    one = generate(model, params, [[5]] * 3, None, key, RANDOM)
    assert one.tokens == generate(model, params, [[5]] * 3, None, keys, RANDOM).tokens
    assert one.tokens[0] != one.tokens[1]
    assert one.tokens == run(model, params, RANDOM, prompts=[[5]] * 3, key=11).tokens
    assert one.tokens != run(model, params, RANDOM, prompts=[[5]] * 3, key=12).tokens


def test_an_unbatched_state_starts_every_row(model, params, state):
    single = jax.tree.map(lambda leaf: leaf[:, 1], state)
    result = run(model, params, state=single)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, 1:2], 3, axis=1), state)
    assert result.tokens == run(model, params, state=repeated).tokens
    assert result.tokens != run(model, params).tokens


def test_going_on_from_the_returned_state_equals_one_long_run(model, params, state):
    short = dataclasses.replace(GREEDY, max_new_tokens=6)
    first = run(model, params, short, state=state, eos_id=None)
    more = run(model, params, state=first.state, prompts=[[1, 2]] * 3, eos_id=None)
    joined = [[*p, *t, 1, 2] for p, t in zip(PROMPTS, first.tokens, strict=True)]
    whole = run(model, params, state=state, prompts=joined, eos_id=None)
    assert more.tokens == whole.tokens
    assert_close(more.state, whole.state)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_sequence_is_left_out_of_tokens_and_state(model, params, state, length):
    free = run(model, params, state=state, eos_id=None)
    stop = free.tokens[0][5 : 5 + length]
    cut = run(model, params, state=state, stop=[[9, 9, 9, 9], stop], eos_id=None)
    for i, prompt in enumerate(PROMPTS):
        tokens = free.tokens[i]
        assert cut.tokens[i] == naive_cut(tokens, [stop])
        assert cut.finished[i] == (cut.tokens[i] != tokens)
        logits, end = read(model, params, [*prompt, *cut.tokens[i]], row(state, i))
        assert_close(row(cut.state, i), end)
        assert_close(cut.logits[i], logits)
    assert cut.finished[0]


def test_the_longest_of_several_stop_sequences_is_left_out(model, params):
    free = run(model, params, eos_id=None).tokens
    stops = [free[0][8:9], free[0][6:9], free[0][7:9]]
    cut = run(model, params, stop=stops, eos_id=None)
    assert cut.tokens == [naive_cut(tokens, stops) for tokens in free]
    assert cut.tokens[0] != free[0]


def test_a_stop_sequence_does_not_reach_into_the_prompt(model, params):
    free = run(model, params, eos_id=None).tokens[0]
    assert run(model, params, stop=[[PROMPTS[0][-1], free[0]]], eos_id=None).tokens[0] == free


def test_the_end_token_ends_a_row_and_is_not_fed(model, params, state):
    free = run(model, params, state=state, eos_id=None)
    eos = free.tokens[1][4]
    cut = run(model, params, state=state, eos_id=eos)
    for i, prompt in enumerate(PROMPTS):
        tokens = free.tokens[i]
        assert cut.tokens[i] == (tokens[: tokens.index(eos)] if eos in tokens else tokens)
        assert_close(row(cut.state, i), read(model, params, [*prompt, *cut.tokens[i]], row(state, i))[1])
    assert cut.finished[1]


def test_no_new_tokens_is_a_prefill(model, params, state):
    result = run(model, params, dataclasses.replace(RANDOM, max_new_tokens=0), state=state)
    assert result.tokens == [[], [], []]
    for i, prompt in enumerate(PROMPTS):
        assert_close(row(result.state, i), read(model, params, prompt, row(state, i))[1])


def test_the_callers_state_is_left_alone(model, params, state):
    before = jax.tree.map(np.array, state)  # np.array copies
    run(model, params, state=state)
    assert all(np.array_equal(a, b) for a, b in zip(before, state, strict=True))


def test_a_stream_calls_what_was_compiled_from_shapes_alone():
    """One program for the prompt and one for all pieces."""
    own = RWKV7(dataclasses.replace(CONFIG, n_embd=16))
    weights = jax.jit(init_params, static_argnums=0)(RWKV7(dataclasses.replace(own.config, scan_layers=True)), KEY)
    own, weights = one_by_one(own, unstack_blocks(weights))
    shapes = decoding_shapes(own.config, weights)
    ready = decoding_weights(own.config, weights)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), ready)
    call = (ByteTokenizer(), "a prompt", None, KEY, dataclasses.replace(GREEDY, max_new_tokens=30))
    programs = compile_stream(own, shapes, *call, lambda _, function, args: jax.jit(function).lower(*args).compile())
    found: list[str | None] = []

    def listener(event: str, seconds: float, **of: str) -> None:
        found.append(of.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        result = list(stream(own, ready, *call, programs=programs))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert result
    assert not [name for name in found if name and ("prefill" in name or "decode" in name)]
    for other in ((ByteTokenizer(), "a prompt of another length", *call[2:]), (*call[:4], RANDOM)):
        assert list(stream(own, ready, *other, programs=programs)) == list(stream(own, ready, *other))


def test_nothing_is_compiled_twice(model, params, state):
    generate(model, params, [[1, 2]], None, jax.random.key(0), RANDOM, stop=[[1, 1, 1]])
    text = list(stream(model, params, ByteTokenizer(), "ab", None, jax.random.key(0), RANDOM, stop=["never"]))
    assert text
    functions = (decode_loop.prefill_and_decode, decode_loop.prefill, decode_loop.decode)
    sizes = [f._cache_size() for f in functions]
    other = SamplingParams(temperature=1.3, top_p=0.5, frequency_penalty=1.0, max_new_tokens=15)
    generate(model, params, [[3] * 14], row(state, 0), jax.random.key(7), other, stop=[[4, 4, 4, 4]], eos_id=9)
    generate(RWKV7(CONFIG), params, [[3] * 16], None, jax.random.key(7), RANDOM, stop=[[4, 4, 4]])
    list(stream(model, params, ByteTokenizer(), "another text", None, jax.random.key(8), other, stop=["x"]))
    assert [f._cache_size() for f in functions] == sizes


def test_weights_are_arguments(model, params):
    """Other weights of the same shapes, other tokens, with no new program."""
    first = run(model, params).tokens
    size = decode_loop.prefill_and_decode._cache_size()
    other = jax.tree.map(lambda x: x * 0.9, params)
    assert run(model, other).tokens != first
    assert decode_loop.prefill_and_decode._cache_size() == size


def test_layers_one_by_one_generate_the_same(model, params, state):
    scanned = RWKV7(dataclasses.replace(CONFIG, scan_layers=True))
    stacked = {name: value for name, value in params.items() if name != "block_1"}
    stacked["blocks"] = jax.tree.map(lambda leaf: leaf[None], params["block_1"])
    fast, ready = for_decoding(scanned, stacked)
    assert fast == model
    np.testing.assert_array_equal(
        ready["block_1"]["ffn"]["key"]["weight_t"].T, params["block_1"]["ffn"]["key"]["weight"]
    )
    wanted = run(model, params, state=state)
    for found in (run(scanned, stacked, state=state), run(fast, ready, state=state)):
        assert found.tokens == wanted.tokens
        assert_close((found.state, found.logits), (wanted.state, wanted.logits))


def test_weights_for_decoding_are_cast_once(model, params):
    """A bfloat16 checkpoint computes in float32 from float32 weights, and in bfloat16 from bfloat16 matrices."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    _, ready = for_decoding(model, half)
    assert {leaf.dtype.name for name, part in ready.items() if name != "emb" for leaf in jax.tree.leaves(part)} == {
        "float32"
    }
    assert ready["emb"]["weight"].dtype == jnp.bfloat16
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    assert run(model, ready).tokens == run(model, exact).tokens
    mixed = RWKV7(dataclasses.replace(CONFIG, dtype="bfloat16", activations="float32"))
    _, small = for_decoding(mixed, params)
    small = streamed.plain(small)
    assert small["head"]["weight"].dtype == small["block_1"]["att"]["w1"].dtype == jnp.bfloat16
    assert small["block_1"]["att"]["x_r"].dtype == jnp.float32


def with_number(params, place, number):
    """The weights with one number replaced."""
    if place == "head":
        return params | {"head": {"weight": params["head"]["weight"].at[9].set(number)}}
    key = params["block_1"]["att"]["key"]["weight"].at[3, 4].set(number)
    att = params["block_1"]["att"] | {"key": {"weight": key}}
    return params | {"block_1": params["block_1"] | {"att": att}}


@pytest.mark.parametrize("config", [GREEDY, RANDOM, dataclasses.replace(RANDOM, max_new_tokens=0)], ids=str)
@pytest.mark.parametrize(("place", "number"), [("att", jnp.nan), ("head", jnp.nan), ("head", jnp.inf)])
def test_logits_that_are_not_finite_are_an_error(model, params, place, number, config):
    damaged = with_number(params, place, number)
    with pytest.raises(NonFiniteLogitsError, match=r"row 0 are not finite after 0 generated tokens.*weight") as error:
        run(model, damaged, config)
    assert "\n" not in str(error.value)
    with pytest.raises(NonFiniteLogitsError, match="after 0 generated tokens"):
        list(stream(model, damaged, ByteTokenizer(), "ab", None, jax.random.key(0), config))


def test_the_token_after_which_logits_are_not_finite_is_named(model, params):
    """The embedding of a token that is generated is NaN: its row alone ends, by an error."""
    free = run(model, params, eos_id=None).tokens
    chosen = next(token for token in reversed(free[2]) if all(token not in prompt for prompt in PROMPTS))
    row_number, tokens = next((i, tokens) for i, tokens in enumerate(free) if chosen in tokens)
    place = f"row {row_number} are not finite after {tokens.index(chosen) + 1} generated tokens"
    damaged = params | {"emb": {"weight": params["emb"]["weight"].at[chosen].set(jnp.nan)}}
    with pytest.raises(NonFiniteLogitsError, match=place):
        run(model, damaged, eos_id=None)
    start = zero_state(CONFIG, None)
    broken = start._replace(wkv=start.wkv.at[0, 0, 0, 0].set(jnp.inf))
    with pytest.raises(NonFiniteLogitsError, match="initial state"):
        run(model, params, state=broken)


@pytest.mark.parametrize(
    ("prompts", "stop", "message"),
    [
        ([], (), "no prompts"),
        ([[1], []], (), "prompt 1 is empty"),
        ([[1], [VOCAB]], (), "prompt 1 has ids 256..256"),
        ([[-1]], (), "prompt 0 has ids -1"),
        ([[1]], [[]], "stop sequence 0 is empty"),
    ],
)
def test_wrong_arguments_get_one_line(model, params, prompts, stop, message):
    with pytest.raises(ValueError, match=message) as error:
        generate(model, params, prompts, None, jax.random.key(0), GREEDY, stop=stop)
    assert "\n" not in str(error.value)


def test_a_misfitting_state_or_key_gets_one_line(model, params, state):
    with pytest.raises(ValueError, match="state leaf has shape"):
        generate(model, params, [[1], [2]], state, jax.random.key(0), GREEDY)
    with pytest.raises(ValueError, match="one for each of the 1 prompts"):
        generate(model, params, [[1]], None, jax.random.split(jax.random.key(0), 2), GREEDY)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 1.1}, {"top_k": -1}, {"temperature": float("nan")}, {"max_new_tokens": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)


# Text: strings in, strings out.


def letters(params):
    """The weights of a model that writes lower-case letters and spaces alone, so that its bytes are readable text."""
    allowed = np.zeros(VOCAB, bool)
    allowed[[ord(" "), *range(ord("a"), ord("z") + 1)]] = True
    head = params["head"]["weight"]
    bias = jnp.where(jnp.asarray(allowed)[:, None], head, 0.0)
    ln_out = {"weight": params["ln_out"]["weight"], "bias": jnp.ones_like(params["ln_out"]["bias"])}
    lift = jnp.where(jnp.asarray(allowed)[:, None], 0.0, -2.0) * jnp.ones_like(head)
    return params | {"head": {"weight": bias + lift}, "ln_out": ln_out}


@pytest.mark.parametrize(("config", "chunk"), [(RANDOM, 1), (RANDOM, 5), (GREEDY, 8)])
def test_streamed_text_is_the_generated_text(model, params, config, chunk):
    key, tokenizer = jax.random.key(21), ByteTokenizer()
    uncounted = uncounted_ids(tokenizer)
    whole = generate(model, params, [list(b"hello")], None, key, config, uncounted=uncounted)
    pieces = stream(model, params, tokenizer, "hello", None, key, config, chunk=chunk)
    assert inspect.isgenerator(pieces)
    text, result = exhaust(pieces)
    assert text == result.texts[0] == tokenizer.decode(whole.tokens[0])
    assert result.tokens == whole.tokens
    assert_close(result.state, whole.state)
    assert_close(result.logits, whole.logits)


def test_the_first_piece_is_one_token_long(model, params):
    first, second = islice(stream(model, params, ByteTokenizer(), "hello", None, KEY, GREEDY, chunk=2), 2)
    assert len(first) == 1
    assert len(second) == 2


def exhaust(generator):
    pieces = []
    while True:
        try:
            pieces.append(next(generator))
        except StopIteration as end:
            return "".join(pieces), end.value


def test_stop_strings_across_chunks_and_rows(model, params):
    readable, tokenizer, key = letters(params), ByteTokenizer(), jax.random.key(4)
    config = dataclasses.replace(RANDOM, top_k=0, max_new_tokens=16)
    prompts = ["one", "two", ""]
    free = generate_text(model, readable, tokenizer, prompts, None, key, config)
    assert all(len(text) == 16 for text in free.texts)
    stops = [free.texts[0][6:9], free.texts[1][11:13]]
    cut = generate_text(model, readable, tokenizer, prompts, None, key, config, stop=stops, chunk=4)
    for i, prompt in enumerate(prompts):
        ends = [at for at in map(free.texts[i].find, stops) if at >= 0]
        expected = free.texts[i][: min(ends, default=None)]
        assert cut.texts[i] == expected
        assert tokenizer.decode(cut.tokens[i]) == expected
        assert cut.finished[i] == bool(ends)
        logits, end = read(model, readable, [*(prompt.encode() or [0]), *expected.encode()], zero_state(CONFIG, 1))
        assert_close(row(cut.state, i), end)
        assert_close(cut.logits[i], logits)
    assert cut.finished[:2] == [True, True]
    pieces = stream(model, readable, tokenizer, "one", None, key, config, stop=stops)
    assert "".join(pieces) == cut.texts[0]


@settings(max_examples=100)
@given(
    text=st.text(alphabet="ab\né", max_size=40),
    stops=st.lists(st.text(alphabet="ab\né", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
@example(text="\naa", stops=["a", "\naa"], cuts=[2])
@example(text="\naa", stops=["a", "\naa"], cuts=[])
def test_nothing_of_a_stop_string_is_ever_shown(text, stops, cuts):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    bounds = [0, *sorted(cuts), len(ids)]
    watch = StopText(tokenizer, stops)
    shown = "".join(watch.push(ids[a:b]) for a, b in itertools.pairwise(bounds))
    shown += watch.finish()
    hits = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown == watch.text == text[: min(hits)[1] if hits else None]
    assert watch.hit == bool(hits)
    assert tokenizer.decode(cut_tokens(tokenizer, ids, shown)) == shown


def test_half_a_token_before_a_stop_string_is_encoded_anew():
    class Pairs(ByteTokenizer):
        """Two letters a token."""

        vocab_size = 1 << 16

        def encode(self, text):
            data = text.encode()
            return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]

        def decode_bytes(self, ids):
            return b"".join(i.to_bytes(2 if i > 255 else 1, "big") for i in ids)

    tokenizer = Pairs()
    ids = tokenizer.encode("abcdef")
    watch = StopText(tokenizer, ["de"])
    assert watch.push(ids[:1]) + watch.push(ids[1:]) == "abc"
    assert cut_tokens(tokenizer, ids, "abc") == [ids[0], ord("c")]


def test_an_empty_stop_string_is_refused(model, params):
    with pytest.raises(ValueError, match="stop string is empty"):
        list(stream(model, params, ByteTokenizer(), "a", None, jax.random.key(0), GREEDY, stop=[""]))


# The choice of one token.


def distribution(logits, config, occurrences=None, draws=4000):
    """Frequencies of the ids drawn from one row of logits."""
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    if occurrences is not None:
        occurrences = Occurrences(*(jnp.broadcast_to(x, (draws, x.shape[-1])) for x in occurrences))
    ids = sample_logits(logits, jax.random.split(jax.random.key(0), draws), config, occurrences)
    return np.bincount(np.asarray(ids), minlength=logits.shape[-1]) / draws


def chi_square(observed, expected, draws=4000):
    support = expected > 0
    assert not observed[~support].any()
    gap = observed[support] - expected[support]
    return draws * float((gap**2 / expected[support]).sum()), int(support.sum()) - 1


def reference_probabilities(logits, config, seen=(), count=()):
    """As PyPI rwkv's `sample_logits` works it out: penalties, softmax, top-p, top-k, temperature as a power."""
    logits = np.asarray(logits, np.float64).copy()
    for token, n in zip(seen, count, strict=True):
        logits[token] -= config.presence_penalty + n * config.frequency_penalty
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    cutoff = probs[order][np.argmax(np.cumsum(probs[order]) >= config.top_p - 1e-12)]
    kept = np.where(probs < cutoff, 0, probs)
    if config.top_k:
        kept[order[config.top_k :]] = 0
    powered = kept ** (1 / config.temperature)
    return powered / powered.sum()


@pytest.mark.parametrize(
    "config",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(temperature=1.5, top_p=0.8, top_k=6),
        SamplingParams(presence_penalty=0.7, frequency_penalty=0.5),
        SamplingParams(temperature=0.8, top_p=0.9, presence_penalty=-0.5, frequency_penalty=0.3),
    ],
    ids=str,
)
def test_ids_are_drawn_from_the_documented_distribution(config):
    logits = np.random.default_rng(3).normal(size=12) * 1.5
    seen, count = [2, 5], [1.5, 3.0]
    mask, counts = np.zeros(12, bool), np.zeros(12, np.float32)
    mask[seen], counts[seen] = True, count
    observed = distribution(logits, config, Occurrences(jnp.asarray(mask), jnp.asarray(counts)))
    statistic, freedom = chi_square(observed, reference_probabilities(logits, config, seen, count))
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


def wide_logits(seed, scales, vocab=700):
    """Rows of more tokens than are looked at first, the likeliest in any place; ties at many values."""
    rng = np.random.default_rng(seed)
    rows = [np.round(rng.normal(size=vocab) * scale, 1) for scale in scales]
    return jnp.asarray(np.stack(rows), jnp.float32)


@pytest.mark.parametrize(
    "config",
    [
        SamplingParams(),
        SamplingParams(top_p=0.6, temperature=1.4),
        SamplingParams(top_p=0.999),
        SamplingParams(top_k=40, temperature=0.7),
        SamplingParams(top_k=400, top_p=0.98),
        SamplingParams(top_k=20, top_p=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.3, 4.0], ids=["flat", "peaked"])
def test_a_large_vocabulary_is_drawn_from_the_same_distribution(config, scale):
    (row,) = wide_logits(8, [scale])
    draws = 20000
    observed, expected = distribution(row, config, draws=draws), reference_probabilities(row, config)
    rare = expected * draws < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))
    statistic, freedom = chi_square(observed, expected, draws=draws)
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_a_rows_token_does_not_depend_on_how_its_neighbours_are_chosen():
    """One flat row sends the whole batch the long way; the tokens of the others stay."""
    logits, keys = wide_logits(9, [4.0, 6.0, 0.1]), jax.random.split(jax.random.key(2), 3)
    for config in (SamplingParams(top_p=0.7), SamplingParams(top_p=0.9, top_k=300), SamplingParams()):
        together = sample_logits(logits, keys, config).tolist()
        alone = [int(sample_logits(logits[i : i + 1], keys[i : i + 1], config)[0]) for i in range(3)]
        assert together == alone


@pytest.mark.parametrize("flat", [0, 1, 8, 9, 19])
def test_rows_that_need_the_whole_vocabulary_are_chosen_a_few_at_a_time(flat):
    """A CPU chose for all rows again where one needed it."""
    scales = np.random.default_rng(flat).permutation([0.1] * flat + [6.0] * (19 - flat))
    logits, keys = wide_logits(flat, scales), jax.random.split(jax.random.key(flat), 19)
    config = SamplingParams(top_p=0.7)
    covered = sampling.choose_among_likeliest(logits, keys, SamplingArrays.of(config))[1]
    assert covered.sum() == 19 - flat
    alone = [int(sample_logits(logits[i : i + 1], keys[i : i + 1], config)[0]) for i in range(19)]
    assert sample_logits(logits, keys, config).tolist() == alone


def test_the_most_likely_token_is_argmax_with_ties_to_the_lowest_id():
    for vocab in (1, 5, 256, 257, 700):
        logits = jnp.round(jax.random.normal(jax.random.key(vocab), (6, vocab)))
        assert sampling.most_likely(logits).tolist() == jnp.argmax(logits, -1).tolist()


def test_occurrences_decay_before_they_count():
    weight = jnp.ones(4).at[3].set(0.0)
    now = Occurrences.none(1, 4)
    for token in (1, 1, 3):
        now = now.add(jnp.asarray([token], jnp.int32), weight, jnp.asarray(0.5))
    assert now.seen.tolist() == [[False, True, False, True]]
    np.testing.assert_allclose(now.count, [[0, 0.75, 0, 0]])
    config = SamplingParams(presence_penalty=1, frequency_penalty=2)
    logits = sampling.penalise(jnp.zeros((1, 4)), now, SamplingArrays.of(config))
    np.testing.assert_allclose(logits, [[0, -2.5, 0, -1]])


def test_penalties_reach_the_loop(model, params):
    """A huge presence penalty forbids every repetition; a huge reward allows nothing else."""
    for penalty, distinct in ((1e4, 16), (-1e4, 1)):
        config = dataclasses.replace(RANDOM, presence_penalty=penalty, max_new_tokens=16)
        assert [len(set(tokens)) for tokens in run(model, params, config, eos_id=None).tokens] == [distinct] * 3


def test_uncounted_tokens_are_digits_and_blanks():
    assert uncounted_ids(ByteTokenizer()) == sorted(b" \t0123456789")


@settings(max_examples=100)
@given(st.integers(0, 20000))
def test_a_bucket_holds_its_length_and_not_much_more(length):
    size = bucketing.padded_prompt_length(length)
    assert max(length, 16) <= size <= max(16, 2 * length)
    assert length <= 256 or size <= 1.25 * length + 1
    assert bucketing.padded_prompt_length(size) == size
