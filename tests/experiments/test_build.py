"""Models as commands load them: quantised ones lose next to nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.build import load_model
from experiments.config.schema import ModelConfig
from experiments.pocket.text import documents
from rwkv7_jax import functional


@pytest.fixture(scope="module")
def rows():
    """The first 64 tokens of 100 documents that the student was not trained on, and which of them are there."""
    lm = load_model(ModelConfig())
    texts = [lm.encode(text)[:64] for text in itertools.islice(documents(777), 100)]
    tokens, valid = np.zeros((100, 64), np.int32), np.zeros((100, 64), bool)
    for i, ids in enumerate(texts):
        tokens[i, : len(ids)], valid[i, : len(ids)] = ids, True
    return jnp.asarray(tokens), jnp.asarray(valid)


def scored(lm, tokens, valid):
    """Mean loss of the documents' tokens, and the likeliest next token of each."""
    run = jax.jit(lambda params: functional.forward(lm.model, params, tokens, lm.zero_state(100), valid=valid)[0])
    logits, told = run(lm.params), valid[:, 1:]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=2)[..., 0]
    loss = -jnp.sum(jnp.where(told, chosen, 0.0)) / jnp.sum(told, dtype=jnp.float32)
    return float(loss), np.asarray(jnp.argmax(logits, axis=-1))[np.asarray(valid)]


def test_quantised_matrices_keep_the_loss_and_the_likeliest_tokens(rows):
    loss, likeliest = scored(load_model(ModelConfig(quantize="none")), *rows)
    assert len(likeliest) > 2000
    for quantize, worse, agreeing in (("int8", 0.002, 0.99), ("int4", 0.02, 0.9)):
        for dtype in ("float32", "bfloat16"):
            small, tokens = scored(load_model(ModelConfig(quantize=quantize, dtype=dtype)), *rows)
            assert abs(small / loss - 1) < worse
            assert np.mean(tokens == likeliest) > agreeing
