"""Samples of fixed shapes are those of plain generation, and end where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import LanguageModel, SamplingParams, generate, load_tokenizer
from rwkv7_jax.finite import NonFiniteLogitsError
from state_tuning.core import surgery
from state_tuning.reinforcement import sampling
from state_tuning.reinforcement.sampling import Sampler, cut_at_stop, pad_prompts, row_keys
from tests.helpers import MODEL, random_state, weights


def strong(path, leaf):
    """The weights with a larger output of the time mix and a larger head, so that S_0 matters much."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf * (4.0 if name.endswith(("att/output/weight", "head/weight")) else 1.0)


LM = LanguageModel(MODEL, jax.tree_util.tree_map_with_path(strong, weights()), load_tokenizer("byte"))
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6]]
STATES = surgery.broadcast(random_state(), 3)
KEYS = row_keys(jax.random.key(0), 6)


@pytest.fixture(scope="module")
def sampler():
    return Sampler(LM, 12)


@pytest.fixture(scope="module")
def plain():
    """Each row by itself: two samples a prompt."""
    settings = SamplingParams(max_new_tokens=12)
    rows = [prompt for prompt in PROMPTS for _ in range(2)]
    return generate(*LM.for_decoding, rows, random_state(), KEYS, settings, eos_id=LM.tokenizer.eos_id)


def test_samples_are_those_of_plain_generation(sampler, plain):
    drawn = sampler.draw(pad_prompts(PROMPTS), STATES, KEYS, 2)
    assert drawn.finished.tolist() == plain.finished
    for row, ids in enumerate(plain.tokens):
        wanted = [*ids, *([LM.tokenizer.eos_id] if plain.finished[row] else [])]
        assert drawn.tokens[row][drawn.counted[row] > 0].tolist() == wanted
        assert drawn.texts[row] == LM.tokenizer.decode(ids)
    assert drawn.lengths.tolist() == drawn.counted.sum(1).tolist()


def test_each_row_may_have_its_own_state(sampler, plain):
    states = surgery.broadcast(random_state(), 6)
    other = states._replace(wkv=states.wkv.at[:, 3].add(random_state(7, 3.0).wkv))
    prompts = pad_prompts(PROMPTS).take(np.repeat(np.arange(3), 2))
    drawn, moved = (sampler.draw(prompts, one, KEYS) for one in (states, other))
    same = [bool((a == b).all()) for a, b in zip(drawn.tokens, moved.tokens, strict=True)]
    assert same == [True, True, True, False, True, True]
    assert drawn.texts == [LM.tokenizer.decode(ids) for ids in plain.tokens]


def test_nothing_is_compiled_after_the_first_batch(sampler):
    prompts = pad_prompts(PROMPTS)
    sampler.draw(prompts, STATES, KEYS, 2)
    before = sampling.sample._cache_size()
    for seed in range(2):
        chosen = prompts.take(np.asarray([seed, 2, 1]))
        sampler.draw(chosen, STATES, row_keys(jax.random.key(seed), 6), 2)
    assert sampling.sample._cache_size() == before


def test_a_stop_string_ends_a_sample(plain):
    texts = [LM.tokenizer.decode(ids) for ids in plain.tokens]
    row, stop = next((row, char) for row, text in enumerate(texts) for char in text if char.isascii() and char > " ")
    drawn = Sampler(LM, 12, stop=[stop]).draw(pad_prompts(PROMPTS), STATES, KEYS, 2)
    assert drawn.texts[row] == texts[row].partition(stop)[0]
    assert drawn.finished[row]
    last = drawn.tokens[row][drawn.counted[row] > 0][-1]
    assert LM.tokenizer.decode([int(last)]).endswith(stop)


def test_the_cut_is_after_the_token_that_completes_the_stop():
    tokenizer = load_tokenizer("byte")
    assert cut_at_stop(tokenizer, list(b"one\n\ntwo"), ["\n\n"]) == ("one", 5, True)
    assert cut_at_stop(tokenizer, list(b"one\n"), ["\n\n"]) == ("one\n", 4, False)


def test_logits_that_are_not_finite_end_the_run(sampler):
    broken = STATES._replace(wkv=STATES.wkv.at[:, 1].set(jnp.nan))
    with pytest.raises(NonFiniteLogitsError):
        sampler.draw(pad_prompts(PROMPTS), broken, KEYS, 2)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        Sampler(LM, 0)
    with pytest.raises(ValueError, match="stop string is empty"):
        Sampler(LM, 4, stop=[""])
    with pytest.raises(ValueError, match="at least one token"):
        pad_prompts([[1], []])
