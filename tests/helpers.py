"""A tiny random model over bytes, its weights away from the official zeros, for the tests of methods around a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rwkv7_jax import RWKV7, RWKV7Config, zero_state
from state_tuning.core import objective

CONFIG = RWKV7Config(
    vocab_size=256, n_layer=2, n_embd=16, head_size=8, dim_ffn=24, decay_lora=4, aaa_lora=4, mv_lora=4, gate_lora=4,
    wkv_implementation="scan",
)  # fmt: skip
MODEL = RWKV7(CONFIG)


@functools.cache
def weights(seed=0, config=CONFIG, scale=0.3):
    """Random weights; scales of norms near one."""

    def init(key):
        return RWKV7(config).init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(config, 1))["params"]

    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        norm = name.endswith("weight") and "ln" in name
        return jnp.asarray(norm + scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


def random_batch(seed=0, rows=4, length=16, vocab=256):
    """Ragged random rows with completions of different lengths."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(length // 2, length + 1, rows)
    examples = [objective.Example(rng.integers(1, vocab, n + 1).astype(np.int32), 2, 0) for n in sizes]
    return jax.tree.map(jnp.asarray, objective.collate(examples, length))


def random_state(seed=1, size=0.3, config=CONFIG):
    """An unbatched float32 state of noise."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), jnp.float32), zero_state(config, None))


@functools.partial(jax.jit, static_argnames="model")
def logits(params, tokens, state, valid=None, *, model=MODEL):
    return model.apply({"params": params}, tokens, state, valid=valid)[0]
