"""Training and decoding agree: log-probabilities of tokens by the trainer's pass, by scoring, and as decoded."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import LanguageModel, SamplingParams, functional
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation import forced
from rwkv7_jax.generation.batch import fit_state
from rwkv7_jax.generation.generate import generate
from rwkv7_jax.inference.engine import Engine, Request
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State
from state_tuning.reinforcement.grpo import token_log_probs
from tests.helpers import random_state

PROMPTS = [list(b"The sea"), list(b"a"), list(b"What is the largest of the lakes?")]
ANSWERS = [list(b" is blue, and"), list(b"b"), list(b" Superior.")]
FLOAT32, BFLOAT16 = 1e-5, 2e-3
POCKET = pathlib.Path(__file__).parents[3] / "experiments" / "assets" / "pocket"


SAID = {
    "Question: ": " milk. What does the body of the yab have? Answer from Ivan. It",
    "The ": " of the pettin is tiny.\nPeople call the pettin a mammal.\nThe",
    "Tom has 3 apples.": " Felix always wears grey. The trade of Bela is that of a gardener. She",
}
"""What the embedded student says after some prompts, sampled."""


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    """A trained model, of whose sums the order matters."""
    return LanguageModel.load(POCKET / "student.safetensors")


def as_trained(lm: LanguageModel, state: State | None) -> list[np.ndarray]:
    """Log-probabilities by one pass over whole rows, as the objective of state tuning and GRPO computes them."""
    size = max(len(lm.encode(prompt)) + len(lm.encode(answer)) for prompt, answer in SAID.items())
    tokens, valid = np.zeros((len(SAID), size), np.int32), np.zeros((len(SAID), size), bool)
    for row, texts in enumerate(SAID.items()):
        ids = [i for text in texts for i in lm.encode(text)]
        tokens[row, : len(ids)], valid[row, : len(ids)] = ids, True
    start = fit_state(lm.model, state, len(SAID))
    x, _ = jax.jit(functional.hidden, static_argnums=0)(lm.model, lm.params, jnp.asarray(tokens), start, valid=valid)
    targets, counted = jnp.asarray(np.roll(tokens, -1, 1)), jnp.ones(tokens.shape, jnp.float32)
    found = token_log_probs(x, lambda z: functional.logits(lm.model, lm.params, z), targets, counted, 64)
    sizes = [(len(lm.encode(prompt)), len(lm.encode(answer))) for prompt, answer in SAID.items()]
    return [np.asarray(row[n - 1 : n + m - 1]) for row, (n, m) in zip(found, sizes, strict=True)]


def as_decoded(lm: LanguageModel, state: State | None) -> list[np.ndarray]:
    rows = [[lm.encode(text) for text in texts] for texts in zip(*SAID.items(), strict=True)]
    return forced.log_probs(*lm.for_decoding, *rows, state).log_probs


def differences(lm: LanguageModel, state: State | None) -> np.ndarray:
    """Of all tokens, as decoded from as trained."""
    pairs = zip(as_decoded(lm, state), as_trained(lm, state), strict=True)
    return np.concatenate([x - y for x, y in pairs])


@pytest.mark.parametrize("wkv", ["chunked", "scan"])
def test_float32(student: LanguageModel, wkv: str):
    lm = student.replace(model=RWKV7(dataclasses.replace(student.config, wkv_implementation=wkv)))
    for state in (None, random_state(3, 0.05, lm.config)):
        assert np.max(np.abs(differences(lm, state))) <= FLOAT32


def test_bfloat16_with_a_float32_state(student: LanguageModel):
    """The form of a CPU: matrices in bfloat16, activations, sums and the state in float32.

    Where a product's factor is rounded to the other side single tokens differ by more than all do in the mean.
    """
    config = dataclasses.replace(student.config, dtype="bfloat16", activations="float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, student.params)
    found = differences(student.replace(model=RWKV7(config), params=half), None)
    assert 0 < np.sqrt(np.mean(found**2)) <= BFLOAT16


def test_the_engine_agrees_with_the_trainer(tiny: LanguageModel):
    settings = SamplingParams(temperature=1.0, max_new_tokens=9)
    with Engine(tiny, slots=3, cache_bytes=0) as engine:
        tickets = [engine.submit(Request(tuple(p), settings, seed=i, logprobs=0)) for i, p in enumerate(PROMPTS)]
        results = [ticket.result() for ticket in tickets]
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.logprobs
        tokens = [one.token for one in result.logprobs]
        (expected,) = forced.log_probs(*tiny.for_decoding, [prompt], [tokens]).log_probs
        np.testing.assert_allclose([one.logprob for one in result.logprobs], expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("rows", [1, 3])
def test_bit_for_bit_what_generating_computed(tiny: LanguageModel, rows: int):
    """Generation returns the logits after its last token: shorter and shorter ones show those of every token."""
    state, prompts = random_state(3, 0.5, tiny.config), PROMPTS[:rows]
    given = (*tiny.for_rows(rows), prompts, state)
    whole = generate(*given, jax.random.key(0), SamplingParams(temperature=1.0, max_new_tokens=6), eos_id=None)
    expected = []
    for count in range(6):
        settings = SamplingParams(temperature=1.0, max_new_tokens=count)
        part = generate(*given, jax.random.key(0), settings, eos_id=None)
        assert part.tokens == [row[:count] for row in whole.tokens]
        chosen = np.asarray([row[count] for row in whole.tokens])
        expected.append(np.asarray(jax.jit(jax.nn.log_softmax)(part.logits))[np.arange(rows), chosen])
    found = forced.log_probs(*tiny.for_rows(rows), prompts, whole.tokens, state)
    np.testing.assert_array_equal(np.stack(found.log_probs, 1), expected)
    np.testing.assert_array_equal(found.logits, whole.logits)


def test_bit_for_bit_what_steps_compute(tiny: LanguageModel):
    """After the same prefill, tokens fed one by one with `LanguageModel.step`."""
    prompt, answer = PROMPTS[0], ANSWERS[0]
    after = generate(*tiny.for_few_rows, [prompt], None, jax.random.key(0), SamplingParams(max_new_tokens=0))
    logits, state = after.logits[0], jax.tree.map(lambda leaf: leaf[:, 0], after.state)
    expected = []
    for token in answer:
        expected.append(np.asarray(jax.jit(jax.nn.log_softmax)(logits[None]))[0, token])
        logits, state = tiny.step(token, state)
    (found,) = forced.log_probs(*tiny.for_few_rows, [prompt], [answer]).log_probs
    np.testing.assert_array_equal(found, expected)


def test_scores_as_decoded(tiny: LanguageModel):
    pairs = [(bytes(p).decode(), bytes(a).decode()) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    state = random_state(3, 0.5, tiny.config)
    rows = forced.log_probs(*tiny.for_rows(3), PROMPTS, ANSWERS, state).log_probs
    found = tiny.score(pairs, state=state, batch_size=3, as_decoded=True)
    assert found == [float(row.sum(dtype=np.float64)) for row in rows]
    np.testing.assert_allclose(found, tiny.score(pairs, state=state), rtol=FLOAT32)
    np.testing.assert_allclose(found, tiny.score(pairs, state=state, batch_size=2, as_decoded=True), rtol=FLOAT32)


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([[1]], [[2], [3]], "log_probs: 2 answers for 1 prompts"),
        ([[1]], [[256]], "log_probs: answer 0 has ids outside 0..255"),
        ([[]], [[1]], "prompt 0 is empty"),
        ([], [], "no prompts"),
    ],
)
def test_refuses_in_one_line(tiny: LanguageModel, prompts: list, answers: list, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        forced.log_probs(*tiny.for_decoding, prompts, answers)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_are_an_error(tiny: LanguageModel):
    model, params = tiny.for_decoding
    broken = params | {"emb": {"weight": params["emb"]["weight"].at[66].set(jnp.nan)}}
    with pytest.raises(NonFiniteLogitsError, match="row 1 are not finite after 2 generated tokens"):
        forced.log_probs(model, broken, [[1], [2]], [[3, 4, 5], [3, 66, 5]])
