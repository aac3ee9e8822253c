"""Many greedy answers at once: the same texts as one by one, in any order, and rows that are not left idle."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import zero_state
from rwkv7_jax.generation.stop_strings import cut_at_earliest_start
from rwkv7_jax.inference.greedy import GreedyGenerator, Prompt
from rwkv7_jax.inference.scoring import PrefixScorer
from rwkv7_jax.inference.stop_automaton import HIT, START, token_table
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core import surgery

LIMIT = 9


@settings(max_examples=60)
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("ab", max_size=20))
def test_the_automaton_finds_the_first_stop(stops, text):
    table, state = token_table(ByteTokenizer(), 256, stops), START
    for fed, byte in enumerate(text.encode(), 1):
        state = table[state, byte]
        assert (state == HIT) == any(stop in text[:fed] for stop in stops)
    assert (
        cut_at_earliest_start(text, stops) == text[: min([text.find(s) for s in stops if s in text], default=len(text))]
    )


def test_an_empty_stop_is_an_error():
    with pytest.raises(ValueError, match="a stop string is empty"):
        token_table(ByteTokenizer(), 256, ["a", ""])


@pytest.fixture(scope="module")
def states(tiny):
    zero = zero_state(tiny.model.config, None)
    return [zero, zero._replace(wkv=jax.random.normal(jax.random.key(5), zero.wkv.shape))]


@pytest.fixture(scope="module")
def prompts():
    return [Prompt(tuple(f"prompt {i * 37 % 11}: ".encode()), i % 2) for i in range(7)]


@pytest.fixture(scope="module")
def wanted(tiny, states, prompts) -> list[bytes]:
    """Token by token, one prompt after the other."""
    step = jax.jit(lambda token, state: tiny.model.apply({"params": tiny.params}, token[None, None], state))
    texts = []
    for prompt in prompts:
        state, ids, out = surgery.broadcast(states[prompt.state], 1), list(prompt.tokens), []
        while len(out) < LIMIT:
            for token in ids:
                logits, state = step(jnp.asarray(token, jnp.int32), state)
            ids = [int(logits[0, 0].argmax())]
            if ids == [0]:
                break
            out += ids
        texts.append(bytes(out))
    return texts


@pytest.fixture(scope="module")
def generator(tiny):
    return GreedyGenerator(tiny.model, tiny.params, tiny.tokenizer, PrefixScorer(tiny.model, tiny.params, 3))


def decoded(texts):
    return [text.decode(errors="replace") for text in texts]


def test_answers_are_those_of_one_by_one(generator, states, prompts, wanted):
    ticks = []
    assert generator.answers(prompts, states, (), LIMIT, ticks.append) == decoded(wanted)
    assert sum(ticks) == len(prompts)
    assert generator.answers(prompts[::-1], states, (), LIMIT) == decoded(wanted)[::-1]


def test_a_stop_ends_a_row_and_the_next_takes_its_place(generator, states, prompts, wanted):
    stops = [chr(byte) for byte in {text[2] for text in wanted if len(text) > 2} if byte < 128][:2]
    texts = [cut_at_earliest_start(text, stops) for text in decoded(wanted)]
    steps = generator.steps
    assert generator.answers(prompts, states, stops, LIMIT) == texts
    used = generator.steps - steps
    lengths = [
        min([text.encode().find(s.encode()) + 1 for s in stops if s in text] or [LIMIT]) for text in decoded(wanted)
    ]
    assert used <= -(-sum(lengths) // 3) + max(lengths)


def test_an_empty_prompt_is_an_error(generator, states):
    with pytest.raises(ValueError, match="a prompt has no token"):
        generator.answers([Prompt(())], states, (), LIMIT)
