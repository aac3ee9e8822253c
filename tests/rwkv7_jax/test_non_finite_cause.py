"""Scores and greedy texts end in an error that names what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.inference.greedy import GreedyGenerator, Prompt
from rwkv7_jax.inference.prefix_tree import ScoredSequence
from rwkv7_jax.inference.scoring import PrefixScorer

BROKEN = {
    "blocks.1.att.key.weight": (("blocks", "att", "key", "weight"), (0, 1, 2), np.nan),
    "head.weight": (("head", "weight"), (65, slice(None)), np.inf),
    "emb.weight": (("emb", "weight"), (66, 0), -np.inf),
}


def broken(params, at, index, value):
    """The weights with some numbers of one tensor replaced."""
    name, *rest = at
    inner = broken(params[name], rest, index, value) if rest else np.array(params[name])
    if not rest:
        inner[index] = value
        inner = jnp.asarray(inner)
    return {**params, name: inner}


@pytest.fixture(scope="module")
def scorer(tiny):
    return PrefixScorer(tiny.model, tiny.params, 4)


@pytest.mark.parametrize("name", BROKEN)
def test_weights_are_named(tiny, name):
    params, states = broken(tiny.params, *BROKEN[name]), [zero_state(tiny.model.config, None)]
    scorer = PrefixScorer(tiny.model, params, 4)
    with pytest.raises(NonFiniteLogitsError, match=rf"logits are not finite: .* weights {name};"):
        scorer.score([ScoredSequence((1, 66, 3), 1), ScoredSequence((1, 66, 4, 5), 2)], states)
    with pytest.raises(NonFiniteLogitsError, match=rf"weights {name};"):
        GreedyGenerator(tiny.model, params, tiny.tokenizer, scorer).answers([Prompt((1, 66))], states, (), 5)


def test_one_infinite_logit_of_a_token_that_is_not_asked_for_is_enough(tiny):
    """-Inf leaves the log-probabilities of all other tokens finite."""
    params = {**tiny.params, "ln_out": {**tiny.params["ln_out"], "bias": jnp.full(8, 1e3)}}
    params = broken(params, ("head", "weight"), (200, slice(None)), -np.inf)
    with pytest.raises(NonFiniteLogitsError, match=r"head\.weight"):
        PrefixScorer(tiny.model, params, 4).score([ScoredSequence((1, 2, 3), 1)], [zero_state(tiny.model.config, None)])


def test_the_state_is_named(tiny, scorer):
    zero = zero_state(tiny.model.config, None)
    with pytest.raises(NonFiniteLogitsError, match="in the initial state number 1 of 2"):
        scorer.score([ScoredSequence((1, 2, 3), 1, 1)], [zero, zero._replace(wkv=zero.wkv.at[0, 0, 0, 0].set(jnp.nan))])
    with pytest.raises(NonFiniteLogitsError, match="in the initial state; use"):
        scorer.score([ScoredSequence((1, 2, 3), 1)], [jax.tree.map(lambda leaf: leaf + jnp.inf, zero)])


def test_logits_that_are_not_finite_after_some_tokens_end_the_loop(tiny):
    """The prompt is sound; the token that is generated first has a broken embedding."""
    states = [zero_state(tiny.model.config, None)]
    logits, _ = tiny.logits([66])
    first = int(jnp.argmax(logits[-1]))
    assert first not in (0, 66)
    params = broken(tiny.params, ("emb", "weight"), (first, 0), np.nan)
    generator = GreedyGenerator(tiny.model, params, tiny.tokenizer, PrefixScorer(tiny.model, params, 4))
    with pytest.raises(NonFiniteLogitsError, match=r"weights emb\.weight"):
        generator.answers([Prompt((66,))], states, (), 64)


def test_an_overflow_is_said(tiny):
    params = {**tiny.params, "head": {"weight": tiny.params["head"]["weight"] * 0 + 3e38}}
    with pytest.raises(NonFiniteLogitsError, match="a number overflows on the way; compute in float32"):
        PrefixScorer(tiny.model, params, 4).score([ScoredSequence((1, 2, 3), 1)], [zero_state(tiny.model.config, None)])
