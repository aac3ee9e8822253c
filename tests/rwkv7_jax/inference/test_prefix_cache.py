"""Which states are kept, found and given up."""

import numpy as np
import pytest

from rwkv7_jax import State
from rwkv7_jax.inference.prefix_cache import Keys, Prefix, PrefixCache, StartKeys

CHUNK = 4


def entry(length, logits=True):
    part = np.zeros(4, np.float32)
    return Prefix(length, State(part, part, np.full(4, length, np.float32)), part if logits else None)


def keys(tokens, start=b"s"):
    return Keys.of(start, tokens, CHUNK)


@pytest.fixture
def cache():
    return PrefixCache(1 << 20, CHUNK)


def test_the_longest_prefix_wins(cache):
    text = tuple(range(11))
    for length, logits in ((4, False), (8, False), (11, True)):
        cache.put(keys(text), entry(length, logits))
    assert cache.find(keys(text)).length == 11
    assert cache.find(keys((*text, 50))).length == 8
    assert cache.find(keys(text[:8])).length == 4, "without logits one more token must follow"
    assert cache.find(keys((*text[:7], 50, 51))).length == 4
    assert cache.find(keys((50, *text[1:]))) is None
    assert cache.find(keys(text, b"other")) is None
    assert cache.find(keys((*text, 50)), 7).length == 8
    assert cache.find(keys((*text, 50)), 8) is None


def test_any_end_serves_unless_exact():
    cache = PrefixCache(1 << 20, CHUNK, exact=False)
    text = tuple(range(11))
    for length in (4, 6, 9, 11):
        cache.put(keys(text[:length]), entry(length))
    assert [cache.find(keys(text[:n])).length for n in (11, 10, 8, 6, 5)] == [11, 9, 6, 6, 4]
    assert cache.find(keys((*text[:10], 99))).length == 9
    assert cache.find(keys((*text[:8], 99, 98))).length == 6


def test_memory_is_bounded_and_the_least_recently_used_goes():
    size = entry(4).size
    cache = PrefixCache(3 * size, CHUNK)
    texts = [(i, 1, 2, 3, 4) for i in range(4)]
    for text in texts[:3]:
        cache.put(keys(text), entry(5))
    assert cache.find(keys(texts[0])) is not None
    cache.put(keys(texts[3]), entry(5))
    assert [cache.find(keys(text)) is not None for text in texts] == [True, False, True, True]
    assert (len(cache), cache.bytes) == (3, 3 * size)
    assert len(cache._bases) == sum(map(len, cache._lengths.values())) == 3


def test_what_is_too_large_is_not_kept():
    cache = PrefixCache(10, CHUNK)
    cache.put(keys(range(4)), entry(4))
    assert (len(cache), cache.wanted(keys(range(4)), 4, entry(4).size)) == (0, False)


def test_logits_are_added_to_what_has_none(cache):
    text = keys(range(4))
    cache.put(text, entry(4, logits=False))
    assert cache.find(text) is None
    cache.put(text, entry(4))
    cache.put(text, entry(4, logits=False))
    assert cache.find(text).logits is not None
    assert (len(cache), cache.bytes) == (1, entry(4).size)


def test_of_long_prompts_some_chunk_ends_are_kept(cache):
    size = cache.limit // 16
    text = keys(range(8 * CHUNK + 1))
    kept = [n for n in range(1, 9) if cache.wanted(text, n * CHUNK, size)]
    assert kept == [2, 4, 6, 8]
    again = [n for n in range(1, 9) if cache.wanted(text, n * CHUNK, size)]
    assert again == list(range(1, 9)), "two prompts pass there"
    assert not cache.wanted(text, 8 * CHUNK + 1, size)


def test_equal_states_have_one_key():
    known, state = StartKeys(), State(*(np.arange(3, dtype=np.float32) + i for i in range(3)))
    key = known.key(state)
    assert known.key(State(*map(np.copy, state))) == key
    state.wkv[0] = 9
    assert known.key(state) != key
    for leaf in state:
        leaf.flags.writeable = False
    assert known.key(state) == known.key(state) != key
    assert len(known._known) == 1
