"""Engines of one shape, which share their programs."""

import jax
import numpy as np
import pytest

from rwkv7_jax import SamplingParams, State, zero_state
from rwkv7_jax.inference.engine import Engine, Request

SLOTS = 3


@pytest.fixture(scope="package")
def make_engine(tiny):
    """Makes an engine of three slots on the tiny model."""

    def make(lm=tiny, **settings):
        return Engine(lm, **{"slots": SLOTS, "cache_bytes": 0, **settings})

    return make


@pytest.fixture
def engine(make_engine):
    """An engine without a cache."""
    with make_engine() as made:
        yield made


@pytest.fixture(scope="package")
def some_state(tiny):
    """An unbatched state of noise, NumPy."""
    rng = np.random.default_rng(3)
    return State(*(np.asarray(0.3 * rng.normal(size=leaf.shape), np.float32) for leaf in zero_state(tiny.config, None)))


@pytest.fixture(scope="package")
def request_of():
    """Makes a request from text and fields of `SamplingParams` and `Request`."""

    def make(text, **settings):
        own = {name: settings.pop(name) for name in list(settings) if name in Request.__dataclass_fields__}
        sampling = SamplingParams(**{"temperature": 0, "max_new_tokens": 8} | settings)
        return Request(tuple(text.encode()), sampling, **own)

    return make


@pytest.fixture(scope="package")
def same_bits():
    """Asserts that two trees are equal bit for bit."""

    def check(left, right):
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return check
