"""A growing text is read once, and what was read is the text as the tokenizer cuts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, State, functional, zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation.generate import SamplingParams, for_decoding, stream
from rwkv7_jax.inference.text_reader import CHUNK, KEPT, PIECE, TextReader
from rwkv7_jax.tokenizer import ByteTokenizer, load_tokenizer

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
SAMPLED = SamplingParams(max_new_tokens=12)
KEY = jax.random.key(3)


def made(vocab_size: int):
    config = RWKV7Config(vocab_size, 256 // vocab_size + 1, 32, head_size=16, decay_lora=8, aaa_lora=8, mv_lora=8)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(RWKV7(config).init, {"params": KEY}, tokens, zero_state(config, 1))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    if vocab_size == 256:  # letters are the likeliest bytes
        params["head"]["weight"][[i for i in range(256) if not chr(i).isascii() or not chr(i).isalpha()]] = 0
    return for_decoding(RWKV7(config), params)


@pytest.fixture(scope="module")
def tiny():
    return *made(256), ByteTokenizer()


@pytest.fixture(scope="module")
def world():
    return *made(65536), load_tokenizer("world")


@pytest.fixture(scope="module")
def start(tiny):
    rng = np.random.default_rng(2)
    return State(*(jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32) for x in zero_state(tiny[0].config, None)))


def drained(pieces):
    said = []
    while True:
        try:
            said.append(next(pieces))
        except StopIteration as end:
            found = end.value
            break
    assert "".join(said) == found.text
    return found


def assert_same_state(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_answers_are_those_of_stream_from_the_whole_text(tiny, start):
    reader = TextReader(*tiny, start)
    text, settings = "User: a\n\nAssistant:", SamplingParams(max_new_tokens=20, top_k=40, presence_penalty=1)
    for turn in range(2):
        key = jax.random.key(turn)
        found = drained(reader.answer(text, key, settings, stop=("e",)))
        assert found.text == "".join(stream(*tiny, text, start, key, settings, stop=("e",)))
        text += found.text[:4] + "\n\nAssistant:"


def test_a_turn_reads_its_own_tokens_and_costs_the_same_after_fifty(tiny):
    reader, text, costs = TextReader(*tiny), "", []
    for turn in range(50):
        text += f"User: question {turn:02}\n\nAssistant:"
        before, known = reader.fed, len(text)
        text += drained(reader.answer(text, KEY, GREEDY)).text + "\n\n"
        costs.append(reader.fed - before)
        assert len(text) - known == 22, "of one byte each: the lengths below are tokens"
    whole, new = len(text), len("User: question 00\n\nAssistant:") + 2 + 20
    assert whole == 50 * new
    assert reader.fed <= whole
    assert set(costs[1:]) == {new}
    assert len(reader._marks) <= KEPT + 5


def test_what_was_read_is_the_text_as_the_tokenizer_cuts_it(world):
    reader, encode = TextReader(*world), world[2].encode
    text = "User: 你好。\n\nAssistant:"
    for turn in range(3):
        found = drained(reader.answer(text, jax.random.fold_in(KEY, turn), SAMPLED))
        said = found.text.replace("\ufffd", "").strip()
        text += f" {said}。\n\nUser: 好。"
        state = reader.read(text)
        assert reader.ids == encode(text)
        text += "\n\nAssistant:"
    fresh = TextReader(*world)
    assert_same_state(state, fresh.read(text.removesuffix("\n\nAssistant:")))
    assert encode("好。") != encode("好。\n\n")[:2], "the last token depends on what follows"


def test_a_longer_text_that_changes_the_last_token_is_read_from_before_it(world):
    reader = TextReader(*world)
    reader.read("User: 好。")
    before = reader.fed
    reader.read("User: 好。\n\nUser: 好。\n\n")
    assert reader.ids == world[2].encode("User: 好。\n\nUser: 好。\n\n")
    assert reader.fed - before == len(reader.ids), "the first text was one mark: all of it is read again"
    drained(reader.answer("User: 好。\n\nUser: 好。\n\nAssistant:", KEY, SAMPLED))
    before, length = reader.fed, len(reader.ids)
    text = world[2].decode(reader.ids[:-1]) + "\n\nUser:"
    reader.read(text)
    assert reader.ids == world[2].encode(text)
    assert reader.fed - before <= len(reader.ids) - length + CHUNK


def test_going_back_reads_from_the_beginning_of_an_earlier_answer(tiny):
    reader, texts = TextReader(*tiny), ["User: a\n\nAssistant:"]
    for _ in range(3):
        said = drained(reader.answer(texts[-1], KEY, GREEDY)).text
        texts.append(f"{texts[-1]}{said}\n\nUser: a\n\nAssistant:")
    before = reader.fed
    again = drained(reader.answer(texts[1], KEY, GREEDY))
    assert reader.fed - before == 1 + len(again.tokens)
    assert texts[2].startswith(texts[1] + again.text)
    other = drained(reader.answer(texts[1], jax.random.key(9), SamplingParams(max_new_tokens=20, top_k=40)))
    assert other.text != again.text
    assert reader.ids == list(texts[1].encode()) + other.tokens


def test_long_texts_are_read_in_pieces(tiny, start):
    text = "abcdefg " * (PIECE // 4 - 2)
    reader = TextReader(*tiny, start)
    state = reader.read(text)
    assert reader.fed == len(reader.ids) == len(text) > PIECE
    assert len(reader._marks) == 2
    batched = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], start)
    after = jax.jit(functional.forward, static_argnums=0)(*tiny[:2], jnp.asarray([reader.ids]), batched)[1]
    assert_same_state(state, jax.tree.map(lambda leaf: leaf[:, 0], after))
    assert_same_state(TextReader(*tiny, start).read(""), start)
    assert_same_state(TextReader(*tiny).read(""), zero_state(tiny[0].config, None))


def test_a_cancelled_answer_can_be_gone_on_from(tiny):
    reader, asked = TextReader(*tiny), []
    text = "User: a\n\nAssistant:"
    found = drained(reader.answer(text, KEY, GREEDY, cancelled=lambda: asked.append(0) or len(asked) > 2))
    assert (len(found.tokens), found.finished) == (2 * CHUNK, False)
    whole = drained(TextReader(*tiny).answer(text, KEY, GREEDY))
    assert whole.text.startswith(found.text)
    rest = drained(reader.answer(text + found.text, KEY, SamplingParams(temperature=0, max_new_tokens=4)))
    assert whole.text == found.text + rest.text
    assert drained(reader.answer(text, KEY, GREEDY, cancelled=lambda: True)).finished is False


def test_endings_are_told_apart(tiny):
    text = "User: a\n\nAssistant:"
    whole = drained(TextReader(*tiny).answer(text, KEY, GREEDY))
    assert (len(whole.tokens), whole.finished) == (20, False)
    stop = whole.text[3:5]
    stopped = drained(TextReader(*tiny).answer(text, KEY, GREEDY, stop=(stop,)))
    assert (stopped.text, stopped.finished) == (whole.text[: whole.text.index(stop)], True)
    none = drained(TextReader(*tiny).answer(text, KEY, SamplingParams(max_new_tokens=0)))
    assert none == ("", [], False)


def test_errors_are_one_line_and_leave_the_reader_as_it_was(tiny):
    model, params, tokenizer = tiny
    reader = TextReader(*tiny)
    with pytest.raises(ValueError, match="the text to continue has no token"):
        next(reader.answer("", KEY, GREEDY))
    with pytest.raises(ValueError, match="a stop string is empty"):
        next(reader.answer("a", KEY, GREEDY, stop=("",)))
    assert reader.fed == 0
    broken = {**params, "head": jax.tree.map(lambda leaf: leaf * np.nan, params["head"])}
    for call in (lambda one: one.read("abc"), lambda one: next(one.answer("abc", KEY, GREEDY))):
        wrong = TextReader(model, broken, tokenizer)
        with pytest.raises(NonFiniteLogitsError):
            call(wrong)
        assert wrong.ids == []
