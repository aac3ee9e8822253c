"""The size of a tuned state against the states that the model reaches."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation import state_scale
from rwkv7_jax import LanguageModel, functional, zero_state
from rwkv7_jax.inference.scoring import PrefixScorer
from state_tuning.core.objective import encode_text


def test_a_state_is_compared_with_those_that_the_model_reaches(tiny_checkpoint):
    lm = LanguageModel.load(tiny_checkpoint)
    scorer = PrefixScorer(lm.model, lm.params, 4)
    examples = encode_text(lm.tokenizer, "one two three four five", 64)
    zero = zero_state(lm.config, None)
    tokens = jnp.asarray([examples[0].tokens[:-1]])
    _, last = functional.hidden(lm.model, lm.params, tokens, zero_state(lm.config, 1))
    own = float(np.sqrt(np.square(np.asarray(last.wkv, np.float64)).mean(axis=(1, 2, 3, 4))).max())

    def ratio(size: float) -> float | None:
        return state_scale.out_of_scale(scorer, zero._replace(wkv=jnp.full_like(zero.wkv, size)), examples)

    assert ratio(0.0) is None
    assert ratio(1e9) == pytest.approx(1e9 / own, rel=0.02)
    assert ratio(state_scale.DOUBTFUL * own * 0.5) is None
