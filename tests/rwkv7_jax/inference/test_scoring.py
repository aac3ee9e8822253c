"""Forking states: the plan by law, and results that do not depend on what else is scored."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import State, zero_state
from rwkv7_jax.inference import state_pool
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.prefix_tree import ScoredSequence, count_tokens, forest
from rwkv7_jax.inference.scoring import PrefixScorer
from rwkv7_jax.tokenizer import ByteTokenizer, WorldTokenizer
from rwkv7_jax.wkv_state import Residual

tokens = st.lists(st.integers(0, 2), min_size=2, max_size=9).map(tuple)
requests = st.builds(
    lambda t, s, n: ScoredSequence(t, 1 + s % (len(t) - 1), n), tokens, st.integers(0, 20), st.integers(0, 1)
)


def told(nodes, state=None, before=()):
    """(owner, everything fed before, target) of each query below, and the owners that end there."""
    for node in nodes:
        fed = before + node.tokens
        assert node.tokens
        assert state in (None, node.state)
        for query in node.queries:
            yield query.owner, node.state, fed[: len(before) + query.position + 1], query.target
        yield from told(node.children, node.state, fed)


def endings(nodes):
    return [owner for node in nodes for owner in [*node.ending, *endings(node.children)]]


@settings(max_examples=200)
@given(st.lists(requests, min_size=1, max_size=12), st.sampled_from([1, 3, 10**9]))
def test_the_plan_asks_exactly_what_was_asked(asked, min_saved):
    nodes = forest(asked, min_saved)
    wanted = [
        (owner, one.state, one.tokens[:at], one.tokens[at])
        for owner, one in enumerate(asked)
        for at in range(one.start, len(one.tokens))
    ]
    assert sorted(told(nodes)) == sorted(wanted)
    assert sorted(endings(nodes)) == list(range(len(asked)))


@settings(max_examples=100)
@given(st.lists(requests, min_size=1, max_size=12), st.randoms())
def test_the_plan_shares_all_it_may_in_any_order(asked, random):
    fed = {(one.state, one.tokens[:n]) for one in asked for n in range(1, len(one.tokens))}
    assert count_tokens(forest(asked, 1)) == len(fed)
    apart = {(one.state, one.tokens[:-1]) for one in asked}
    assert count_tokens(forest(asked, 10**9)) == sum(len(tokens) for _, tokens in apart)
    shuffled = random.sample(asked, len(asked))
    plain = lambda nodes: [(n.state, n.tokens, plain(n.children)) for n in nodes]  # noqa: E731
    assert plain(forest(shuffled, 2)) == plain(forest(asked, 2))


words = st.text("ab \n:é", max_size=12)


@pytest.fixture(scope="module")
def world():
    return WorldTokenizer()


@settings(max_examples=15)
@given(st.lists(words, min_size=1, max_size=6), words, words)
def test_kept_tokens_change_no_encoding(world, texts, head, more):
    encoder = Encoder(world)
    for text in texts:
        long = head * 20 + text + more
        assert encoder.encode(long) == world.encode(long)


def test_pairs_are_parted_as_in_the_harness():
    encoder = Encoder(ByteTokenizer())
    assert encoder.pair("ab", " c") == ScoredSequence((97, 98, 32, 99), 2)
    assert encoder.pair("ab ", "c", (5,), 1) == ScoredSequence((5, 97, 98, 32, 99), 3, 1)
    assert encoder.pair("", "c") == ScoredSequence((0, 99), 1)
    assert encoder.pair("", "c", (7,)) == ScoredSequence((7, 99), 1)
    with pytest.raises(ValueError, match="has no token of its own"):
        encoder.pair("ab", "")


def test_a_continuation_that_shares_a_token_with_its_context_is_encoded_alone():
    tokenizer = WorldTokenizer()
    encoder = Encoder(tokenizer)
    assert tokenizer.encode("Answer") != [*tokenizer.encode("Ans"), *tokenizer.encode("wer")]
    for context, continuation in [("Ans", "wer"), ("is gre", "y."), ("is gre", "en. The leaf"), ("f gre ", "y.")]:
        found = encoder.pair(context, continuation, (7,))
        own = context[len(context.rstrip()) :] + continuation
        assert found.tokens[: found.start] == (7, *tokenizer.encode(context.rstrip()))
        assert tokenizer.decode(found.tokens[found.start :]) == own


@pytest.fixture(scope="module")
def states(tiny) -> list[State]:
    """The zero state and two random ones, unbatched."""
    zero = zero_state(tiny.model.config, None)
    keys = jax.random.split(jax.random.key(3))
    return [zero, *(zero._replace(wkv=jax.random.normal(key, zero.wkv.shape)) for key in keys)]


HEAD = "a shared beginning of some length, "
TEXTS = [f"{HEAD}{middle}|{end}" for middle in ("one", "two, longer", "3") for end in ("x", "yz", "yzz")]


@pytest.fixture(scope="module")
def asked():
    texts = [ScoredSequence(tuple(text.encode()), text.index("|") + 1, state) for state in (0, 1, 2) for text in TEXTS]
    return [*texts, ScoredSequence((5, 6), 1), ScoredSequence((7, 8, 9), 1, 2)]


def plain(tiny, states, asked) -> list[float]:
    """Every sequence whole, each from its own state, without padding on the right of its last token."""
    longest = max(len(one.tokens) for one in asked)
    rows = np.zeros((len(asked), longest), np.int32)
    for row, one in zip(rows, asked, strict=True):
        row[: len(one.tokens)] = one.tokens
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *[states[one.state] for one in asked])
    logits, _ = jax.jit(tiny.model.apply)({"params": tiny.params}, jnp.asarray(rows), start)
    logs = np.asarray(jax.nn.log_softmax(logits))
    return [
        sum(float(logs[i, at - 1, one.tokens[at]]) for at in range(one.start, len(one.tokens)))
        for i, one in enumerate(asked)
    ]


def test_forked_scores_are_the_plain_ones(tiny, states, asked):
    scorer = PrefixScorer(tiny.model, tiny.params, 4, min_saved=8)
    scores = [answer.log_likelihood for answer in scorer.score(asked, states)]
    np.testing.assert_allclose(scores, plain(tiny, states, asked), rtol=2e-5, atol=2e-5)
    assert scorer.cost.tokens < sum(len(one.tokens) - 1 for one in asked) / 2


def test_scores_depend_on_neither_order_nor_batch_shape_and_compile_once(tiny, states, asked):
    scorer = PrefixScorer(tiny.model, tiny.params, 4, min_saved=8)
    ticks = []
    scores = np.asarray(scorer.score(asked, states, ticks.append))
    assert sum(ticks) == len(asked)
    compiled = state_pool.advance._cache_size()
    order = np.random.default_rng(0).permutation(len(asked))
    again = np.asarray(scorer.score([asked[i] for i in order], states))
    np.testing.assert_array_equal(again, scores[order])
    assert state_pool.advance._cache_size() == compiled
    wide = np.asarray(PrefixScorer(tiny.model, tiny.params, 16, min_saved=8).score(asked, states))
    np.testing.assert_allclose(wide[:, 0], scores[:, 0], rtol=1e-5, atol=1e-5)


def test_other_rows_and_padding_change_no_bit(tiny, states, asked):
    """Rows of one shape, alone or among others."""
    scorer = PrefixScorer(tiny.model, tiny.params, 4, min_saved=10**9)
    same = [one for one in asked if one.state == 1 and bool(one.tokens[-1] == ord("z"))][:4]
    together = scorer.score(same, states)
    poisoned = [same[0], *(ScoredSequence((255, *one.tokens[1:]), one.start, 2) for one in same[1:])]
    assert scorer.score(poisoned, states)[0] == together[0]


def test_long_nodes_go_in_pieces(tiny, states):
    text = tuple(itertools.islice(itertools.cycle(b"some words "), 280))
    asked = [ScoredSequence((*text, 1, 2), 250, 1), ScoredSequence((*text[:20], 3), 20, 0)]
    scorer = PrefixScorer(tiny.model, tiny.params, 4)
    scores = [x.log_likelihood for x in scorer.score(asked, states)]
    assert scorer.cost.passes > 1
    np.testing.assert_allclose(scores, plain(tiny, states, asked), rtol=2e-5, atol=2e-5)


def test_any_number_of_next_tokens_is_scored_after_one(tiny, states):
    """More than a pass has places, some of them twice, beside others."""
    asked = [ScoredSequence((5, 6, token % 200), 2) for token in range(300)] + [ScoredSequence((5, 6, 7, 8), 1)]
    scores = [x.log_likelihood for x in PrefixScorer(tiny.model, tiny.params, 2).score(asked, states)]
    np.testing.assert_allclose(scores, plain(tiny, states, asked), rtol=2e-5, atol=2e-5)


def test_greedy_is_told(tiny, states):
    scorer = PrefixScorer(tiny.model, tiny.params, 4)
    answers = scorer.score([ScoredSequence((5, token), 1) for token in range(256)], states)
    assert sum(answer.greedy for answer in answers) == 1
    assert max(answers).greedy
    assert math.isclose(sum(math.exp(x.log_likelihood) for x in answers), 1, rel_tol=1e-4)


def test_nothing_to_score_is_an_error(tiny, states):
    with pytest.raises(ValueError, match="needs a token before"):
        PrefixScorer(tiny.model, tiny.params, 4).score([ScoredSequence((5,), 1)], states)


def test_states_of_different_kinds_side_by_side(tiny, states):
    """A memory that is no plain matrix is another pool: the same scores as alone."""
    c = tiny.model.config
    draw = np.random.default_rng(0).normal
    shapes = {"s_ext": (c.head_size, 3), "supports": (3, c.head_size), "gamma": ()}
    extra = {name: jnp.asarray(draw(size=(c.n_layer, c.n_head, *shape)), jnp.float32) for name, shape in shapes.items()}
    lifted = states[1]._replace(wkv=Residual(s=states[1].wkv, **extra))
    mixed = [states[1], lifted, states[2]]
    text = tuple(b"a common text|end")
    scorer = PrefixScorer(tiny.model, tiny.params, 4)
    answers = scorer.score([ScoredSequence(text, 13, i) for i in range(3)], mixed)
    assert answers[::2] == scorer.score([ScoredSequence(text, 13, i) for i in range(2)], mixed[::2])
    assert abs(answers[1].log_likelihood - answers[0].log_likelihood) > 1e-4
    start = jax.tree.map(lambda leaf: leaf[:, None], lifted)
    logits, _ = tiny.model.apply({"params": tiny.params}, jnp.asarray([text]), start)
    logs = jax.nn.log_softmax(logits)[0]
    wanted = sum(float(logs[at - 1, text[at]]) for at in range(13, len(text)))
    np.testing.assert_allclose(answers[1].log_likelihood, wanted, rtol=2e-5)
