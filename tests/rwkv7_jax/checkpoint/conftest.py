"""Random checkpoints in released names, and what every format's error has to look like."""

import contextlib

import ml_dtypes
import numpy as np
import pytest

from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import CheckpointError
from rwkv7_jax.checkpoint.names import VECTOR, expected_shapes

SMALL = RWKV7Config(
    vocab_size=11, n_layer=3, n_embd=12, head_size=4, dim_ffn=20, decay_lora=5, aaa_lora=3, mv_lora=2, gate_lora=6
)


@pytest.fixture(scope="session")
def small() -> RWKV7Config:
    """A config whose dimensions are all different, so that a mix-up cannot pass."""
    return SMALL


@pytest.fixture(scope="session")
def make_flat():
    """make_flat(config, seed, dtype, unused) -> released names and shapes with random numbers."""

    def make(config=SMALL, seed=0, dtype=ml_dtypes.bfloat16, unused=False):
        rng = np.random.default_rng(seed)
        shapes = expected_shapes(config)
        if unused:
            rank = config.mv_lora
            shapes |= {"blocks.0.att.v0": (config.n_embd,), "blocks.0.att.v1": (config.n_embd, rank)}
            shapes |= {"blocks.0.att.v2": (rank, config.n_embd)}
        flat = {}
        for name, shape in shapes.items():
            array = rng.standard_normal(shape).astype(dtype)
            flat[name] = array.reshape(1, 1, -1) if VECTOR.fullmatch(name) else array
        return flat

    return make


@pytest.fixture(scope="session")
def same_bits():
    """same_bits(a, b): equal names, dtypes, shapes and bits."""

    def compare(a, b):
        assert set(a) == set(b)
        for name in a:
            x, y = np.asarray(a[name]), np.asarray(b[name])
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert x.tobytes() == y.tobytes(), name

    return compare


@pytest.fixture(scope="session")
def one_line_error():
    """with one_line_error("part of it"): expects a CheckpointError of one readable line."""

    @contextlib.contextmanager
    def expect(*parts: str):
        with pytest.raises(CheckpointError) as caught:
            yield
        text = str(caught.value)
        assert "\n" not in text
        assert text.isprintable()
        for part in parts:
            assert part in text

    return expect


@pytest.fixture(scope="session")
def survives():
    """survives(read, path): `read` returns or raises CheckpointError, nothing else."""

    def call(read, path):
        with contextlib.suppress(CheckpointError):
            return read(path)

    return call
