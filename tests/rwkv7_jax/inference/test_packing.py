"""Packing: every token once, from the right state, few places left empty."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation import suite
from experiments.tasks import Loglikelihood
from rwkv7_jax.inference import packing
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.packing import PlacedNode, Schedule, Shape, shapes
from rwkv7_jax.inference.prefix_tree import ScoredSequence, count_tokens, forest
from rwkv7_jax.tokenizer import WorldTokenizer

tokens = st.lists(st.integers(0, 2), min_size=2, max_size=40).map(tuple)
requests = st.builds(
    lambda t, s, n: ScoredSequence(t, 1 + s % (len(t) - 1), n), tokens, st.integers(0, 40), st.integers(0, 1)
)
menus = st.lists(st.builds(Shape, st.integers(1, 4), st.sampled_from([1, 4, 16])), min_size=1, max_size=3)


def played(nodes, menu, initial=2):
    """Plays the passes on a pool that holds, instead of states, what was fed. Returns each node's text at its end."""
    plan = Schedule([PlacedNode(node.state, node) for node in nodes], initial, menu)
    pool: list[tuple | None] = [*((slot,) for slot in range(initial)), *[None] * (plan.slots - initial)]
    ended, asked = {}, []
    for one in plan.passes():
        assert len(one.pieces) <= one.shape.rows
        assert one.shape in menu
        assert len({piece.target for piece in one.pieces}) == len(one.pieces)
        after = {}
        for piece in one.pieces:
            assert 0 < piece.end - piece.begin <= one.shape.length
            before = pool[piece.source]
            assert before is not None
            after[piece.target] = before + piece.node.tokens[piece.begin : piece.end]
            asked += [
                (q.owner, before + piece.node.tokens[piece.begin : q.position + 1], q.target) for q in piece.queries
            ]
        assert not set(after) & set(range(initial))
        for slot, text in after.items():
            pool[slot] = text
        for piece in one.pieces:
            if piece.finishes:
                assert id(piece.node) not in ended
                ended[id(piece.node)] = pool[piece.target]
    return ended, asked


def texts(nodes, before=None):
    for node in nodes:
        text = ((node.state,) if before is None else before) + node.tokens
        yield id(node), text
        yield from texts(node.children, text)


@settings(max_examples=200)
@given(st.lists(requests, min_size=1, max_size=14), st.sampled_from([1, 3, 10**9]), menus)
def test_every_node_is_fed_once_from_its_parents_state(asked, min_saved, menu):
    nodes = forest(asked, min_saved)
    ended, answered = played(nodes, menu)
    assert ended == dict(texts(nodes))
    wanted = [
        (owner, (one.state, *one.tokens[:at]), one.tokens[at])
        for owner, one in enumerate(asked)
        for at in range(one.start, len(one.tokens))
    ]
    assert sorted(answered) == sorted(wanted)


def test_a_tree_deeper_than_the_batch_ends():
    """Each text continues the one before: a chain with a branch at every level."""
    chain = [ScoredSequence((*[7] * length, 1, 2, 3), length + 1) for length in range(2, 90, 2)]
    nodes = forest(chain, 1)
    assert played(nodes, [Shape(1, 4)], 1)[0] == dict(texts(nodes))


def test_the_passes_do_not_depend_on_the_order_of_requests():
    asked = [ScoredSequence((*[i % 3] * (5 + i), i, 1), 5) for i in range(20)]

    def plan(sequences):
        passes = Schedule([PlacedNode(0, node) for node in forest(sequences, 2)], 1, shapes(4, 100)).passes()
        return [(one.shape, [(p.node.tokens, p.begin, p.source, p.target) for p in one.pieces]) for one in passes]

    assert plan(asked) == plan(asked[::-1])


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (5, 1), (32, 8), (64, 4), (6, 4)])
def test_shapes_are_within_the_batch_and_shared_by_devices(batch_size, devices):
    for tokens in (1, 10**6):
        for shape in shapes(batch_size, tokens, 16, devices):
            assert 1 <= shape.rows <= batch_size
            assert shape.rows % devices == 0 or batch_size % devices


@pytest.fixture(scope="module")
def mmlu(shared_data):
    """5-shot MMLU, 4 and 40 questions of each of 10 subjects, as token sequences."""
    encoder = Encoder(WorldTokenizer())
    found = {}
    for limit in (4, 40):
        (bench,) = suite.load(["mmlu"], suite.Options(data_dir=str(shared_data / "datasets"), limit=limit))
        asked = [request for item in bench.items for request in bench.requests(*item)]
        found[limit] = [
            encoder.pair(one.context, one.continuation, bench.prefix) for one in asked if isinstance(one, Loglikelihood)
        ]
        assert len(found[limit]) == 40 * limit
    return found


@pytest.mark.parametrize("places_a_row", [8, 64])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 32, 48, 64, 256])
def test_few_places_of_five_shot_mmlu_are_empty_at_any_batch_size(mmlu, batch_size, places_a_row):
    for asked in mmlu.values():
        nodes = forest(asked)
        menu = shapes(batch_size, count_tokens(nodes), places_a_row)
        passes = list(Schedule([PlacedNode(0, node) for node in nodes], 1, menu).passes())
        places = sum(one.shape.places for one in passes)
        fed = sum(piece.end - piece.begin for one in passes for piece in one.pieces)
        assert fed == count_tokens(nodes)
        assert fed >= 0.8 * places, f"{1 - fed / places:.0%} of {places} places are empty"
        assert len({one.shape for one in passes}) <= len(packing.LENGTHS)
