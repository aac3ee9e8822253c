"""With a draft the greedy tokens are the same and sampled ones have the same distribution; states go back exactly."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rwkv7_jax import RWKV7, RWKV7Config, functional, zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation import speculative
from rwkv7_jax.generation.generate import (
    Draft,
    SamplingParams,
    for_decoding,
    generate,
    generate_text,
    stream,
)
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from rwkv7_jax.wkv_state import Offset
from tests.helpers import CONFIG, MODEL, random_state, weights

SMALL_CONFIG = dataclasses.replace(CONFIG, n_layer=1)
LARGE = for_decoding(MODEL, weights())
SMALL = for_decoding(RWKV7(SMALL_CONFIG), weights(7, SMALL_CONFIG))
GREEDY = SamplingParams(temperature=0, max_new_tokens=13)
KEY = jax.random.key(3)
PROMPTS = [[5, 6, 7], [9], [101, 7, 43, 11, 12, 200, 3]]


def nearly(seed, size=0.02):
    """The large model's weights with noise: a draft of which some proposals are kept."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype), LARGE[1])


@pytest.fixture(scope="module")
def drafts():
    """From never right to always right."""
    return {
        "other": Draft(*SMALL, tokens=3),
        "near": Draft(LARGE[0], nearly(0), tokens=3),
        "same": Draft(*LARGE, tokens=3),
    }


def run(config=GREEDY, *, draft=None, prompts=PROMPTS, state=None, key=KEY, **options):
    return generate(*LARGE, prompts, state, key, config, draft=draft, **options)


def assert_same(found, wanted):
    assert found.tokens == wanted.tokens
    assert found.finished == wanted.finished
    for a, b in zip(
        jax.tree.leaves((found.state, found.logits)), jax.tree.leaves((wanted.state, wanted.logits)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["other", "near", "same"])
def test_greedy_tokens_states_and_logits_are_the_same(drafts, name):
    rng = np.random.default_rng(1)
    many = [rng.integers(1, 256, rng.integers(1, 16)).tolist() for _ in range(24)]
    for state in (None, random_state(2, 1.0)):
        found = run(draft=drafts[name], prompts=many, state=state, eos_id=None)
        assert_same(found, run(prompts=many, state=state, eos_id=None))
        assert all(len(row) == 13 for row in found.tokens)


def test_rows_keep_different_numbers_of_tokens_and_passes_are_counted(drafts):
    same, other, near = (run(draft=drafts[name], eos_id=None).drafted for name in ("same", "other", "near"))
    assert same.passes == [4, 4, 4], "rounds of 4, 4, 4 and 1 tokens"
    assert same.accepted == [10, 10, 10]
    assert all(passes + kept in (13, 14) for passes, kept in zip(other.passes, other.accepted, strict=True))
    assert max(other.accepted) <= 2
    assert len(set(near.passes)) > 1, "rows of one batch differ"
    assert run().drafted is None


def test_end_tokens_and_stop_sequences_end_rows_where_they_would(drafts):
    plain = run(eos_id=None).tokens
    eos, stop = plain[0][5], [plain[1][3:5], plain[2][7:8]]
    for name in drafts:
        found = run(draft=drafts[name], eos_id=eos, stop=stop)
        assert_same(found, run(eos_id=eos, stop=stop))
        assert any(found.finished)
        assert min(map(len, found.tokens)) < 13


def test_penalties_reach_proposals_and_checks_alike(drafts):
    config = dataclasses.replace(GREEDY, presence_penalty=0.7, frequency_penalty=0.9, penalty_decay=0.9)
    wanted = run(config, eos_id=None)
    assert wanted.tokens != run(eos_id=None).tokens
    for draft in drafts.values():
        assert_same(run(config, draft=draft, eos_id=None), wanted)
    assert run(config, draft=drafts["same"], eos_id=None).drafted.passes == [4, 4, 4]


def test_other_kinds_of_states_go_back_too(drafts):
    state = random_state(2, 1.0)
    offset = state._replace(wkv=Offset(state.wkv, random_state(4, 0.3).wkv))
    assert_same(run(draft=drafts["near"], state=offset, eos_id=None), run(state=offset, eos_id=None))


def test_the_draft_may_have_a_state_of_its_own(drafts):
    start = random_state(2, 30.0)
    own = dataclasses.replace(drafts["same"], state=start)
    assert run(draft=own, state=start, eos_id=None).drafted.passes == [4, 4, 4]
    assert sum(run(draft=drafts["same"], state=start, eos_id=None).drafted.passes) > 12


def exact(prompt, length):
    """Probability of every sequence of `length` tokens, from the large model read over each, in float64."""
    found = {}
    tokens = list(itertools.product(range(TINY.vocab_size), repeat=length))
    read = jnp.asarray([[*prompt, *one[:-1]] for one in tokens], jnp.int32)
    logits, _ = functional.forward(*TINY_LARGE, read, zero_state(TINY, len(tokens)))
    logits = np.asarray(logits[:, len(prompt) - 1 :], np.float64) / 0.8
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    for row, one in zip(log_p, tokens, strict=True):
        found[one] = np.exp(sum(row[i, token] for i, token in enumerate(one)))
    return found


TINY = RWKV7Config(4, 1, 8, head_size=4, decay_lora=2, aaa_lora=2, mv_lora=2, gate_lora=2, wkv_implementation="scan")
TINY_LARGE = RWKV7(TINY), weights(1, TINY, 0.5)
TINY_SMALL = RWKV7(TINY), weights(2, TINY, 0.5)


def test_sampled_sequences_have_the_large_models_distribution():
    """All 64 sequences of three tokens, chi-square at 1e-4 over 20,000 rows with a fixed seed."""
    rows, prompt = 20_000, [1, 3]
    config = SamplingParams(temperature=0.8, max_new_tokens=3)
    draft = Draft(*TINY_SMALL, tokens=2)
    result = generate(*TINY_LARGE, [prompt] * rows, None, jax.random.key(11), config, eos_id=None, draft=draft)
    wanted = exact(prompt, 3)
    counts = dict.fromkeys(wanted, 0)
    for row in result.tokens:
        counts[tuple(row)] += 1
    expected = rows * np.asarray(list(wanted.values()))
    np.testing.assert_allclose(expected.sum(), rows, rtol=1e-5)
    statistic = (np.square(np.asarray(list(counts.values())) - expected) / expected).sum()
    assert statistic < stats.chi2.ppf(1 - 1e-4, len(wanted) - 1)
    assert 0 < sum(result.drafted.accepted) < 2 * sum(result.drafted.passes), "some kept, some refused"


RANDOM = SamplingParams(temperature=0.9, top_p=0.9, top_k=20, frequency_penalty=0.4, max_new_tokens=13)


def test_a_sampled_row_depends_on_its_own_key_alone(drafts):
    keys = jax.random.split(jax.random.key(5), 3)
    together = run(RANDOM, draft=drafts["near"], key=keys, eos_id=None)
    for i, prompt in enumerate(PROMPTS):
        alone = run(RANDOM, draft=drafts["near"], prompts=[prompt], key=keys[i : i + 1], eos_id=None)
        assert alone.tokens == together.tokens[i : i + 1]
    assert together.tokens != run(RANDOM, draft=drafts["near"], eos_id=None).tokens


def test_pieces_of_a_stream_join_to_the_text_whatever_their_size(drafts):
    given = (*LARGE, ByteTokenizer())
    for config in (GREEDY, RANDOM):
        whole = generate_text(*given, ["abc"], None, KEY, config, draft=drafts["near"])
        pieces = stream(*given, "abc", None, KEY, config, draft=drafts["near"], chunk=2)
        assert "".join(pieces) == whole.texts[0]
        assert len(whole.tokens[0]) <= 13
        assert whole.drafted.passes[0] <= len(whole.tokens[0]) + 1
    plain = generate_text(*given, ["abc", "x"], None, KEY, GREEDY, stop=["\n", "e"])
    assert_same(generate_text(*given, ["abc", "x"], None, KEY, GREEDY, stop=["\n", "e"], draft=drafts["near"]), plain)


def test_nothing_is_compiled_again_for_other_prompts_keys_and_numbers(drafts):
    def once(seed, temperature):
        config = SamplingParams(temperature=temperature, top_p=0.8, max_new_tokens=9)
        run(config, draft=drafts["near"], prompts=[[seed, 4]] * 3, key=jax.random.key(seed), eos_id=None)

    once(1, 0.7)
    counts = [program._cache_size() for program in (speculative.prefill, speculative.decode, speculative.finish)]
    once(2, 1.1)
    again = [program._cache_size() for program in (speculative.prefill, speculative.decode, speculative.finish)]
    assert again == counts


def test_a_broken_draft_costs_speed_and_a_broken_model_is_an_error(drafts):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), LARGE[1])
    found = run(draft=Draft(LARGE[0], broken, tokens=3), eos_id=None)
    assert found.tokens == run(eos_id=None).tokens
    sampled = run(RANDOM, draft=Draft(LARGE[0], broken, tokens=3), eos_id=None)
    assert sampled.drafted.accepted == [0, 0, 0]
    with pytest.raises(NonFiniteLogitsError, match="row 0 are not finite after 0 generated"):
        generate(LARGE[0], broken, PROMPTS, None, KEY, GREEDY, draft=drafts["other"])


def test_no_new_tokens_leave_the_state_after_the_prompt(drafts):
    none = SamplingParams(temperature=0, max_new_tokens=0)
    assert_same(run(none, draft=drafts["near"]), run(none))


def test_mistakes_are_told(drafts):
    with pytest.raises(ValueError, match=r"must lie in 1\.\.64, got 0"):
        Draft(*LARGE, tokens=0)
    with pytest.raises(ValueError, match="its vocabulary has 4 tokens, that of the model 256"):
        run(draft=Draft(*TINY_SMALL))
    with pytest.raises(ValueError, match="a state leaf has shape"):
        run(draft=dataclasses.replace(drafts["other"], state=random_state()))


def test_a_language_model_generates_with_another_as_draft():
    large = LanguageModel(MODEL, weights(), ByteTokenizer())
    small = LanguageModel(RWKV7(SMALL_CONFIG), weights(7, SMALL_CONFIG), ByteTokenizer())
    plain = large.generate("abc", temperature=0, max_new_tokens=9)
    draft = Draft(*small.for_few_rows, tokens=3)
    assert large.generate("abc", temperature=0, max_new_tokens=9, draft=draft) == plain
    assert "".join(large.stream("abc", temperature=0, max_new_tokens=9, draft=draft)) == plain
