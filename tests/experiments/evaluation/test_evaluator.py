"""The evaluator against the plainest possible scorer, and its independence of batches and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.tasks import Generate, Loglikelihood
from rwkv7_jax import State, zero_state
from rwkv7_jax.inference.encoding import Encoder
from state_tuning.core import surgery
from state_tuning.core.objective import encode_example

PAIRS = [("12+", "3"), ("12+", "4"), ("abc", "defgh"), ("abcabcabc", "d"), ("", "xy"), ("q", "rs"), ("12+", "5")]


@pytest.fixture(scope="module")
def state(tiny) -> State:
    """A random unbatched start."""
    zero = zero_state(tiny.model.config, None)
    return zero._replace(wkv=jax.random.normal(jax.random.key(7), zero.wkv.shape))


@pytest.fixture(scope="module")
def evaluator(tiny) -> Evaluator:
    return Evaluator(tiny, make_scorer(tiny.model), batch_size=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def one_token(tiny):
    """(token, batched state of one row) -> (logits [vocab], state)."""

    def step(token, state):
        logits, state = tiny.model.apply({"params": tiny.params}, token[None, None], state)
        return logits[0, 0], state

    step = jax.jit(step)
    return lambda token, state: step(jnp.asarray(token, jnp.int32), state)


def naive(tiny, one_token, state, context, continuation):
    """Token by token, one row, no padding."""
    tokenizer = tiny.tokenizer
    ids = tokenizer.encode(context) or [tokenizer.eos_id]
    answer = tokenizer.encode(continuation)
    state, total, logits = surgery.broadcast(state, 1), 0.0, jnp.zeros(256)
    for position, token in enumerate([*ids, *answer]):
        if position >= len(ids):
            total += float(jax.nn.log_softmax(logits)[token])
        logits, state = one_token(token, state)
    return total


def test_log_likelihoods_equal_the_naive_scorer(tiny, one_token, evaluator, state):
    wanted = [naive(tiny, one_token, state, *pair) for pair in PAIRS]
    np.testing.assert_allclose(evaluator.log_likelihoods(state, PAIRS), wanted, rtol=2e-5, atol=2e-5)
    zero = zero_state(tiny.model.config, None)
    assert not np.allclose(evaluator.log_likelihoods(zero, PAIRS), wanted, rtol=1e-2)


def test_shared_contexts_are_read_once_and_score_the_same(tiny, evaluator, state):
    context = "a question, a long one"
    letters = [(context, letter) for letter in "ABCD"]
    encoder, scorer = Encoder(tiny.tokenizer), evaluator.answerer.scorer
    together = [x.log_likelihood for x in scorer.score([encoder.pair(*pair) for pair in letters], [state])]
    assert scorer.cost.tokens == len(context)
    whole = [encode_example(tiny.tokenizer, *pair, eos=False) for pair in letters]
    np.testing.assert_allclose(together, -evaluator.losses(state, whole)[0], rtol=2e-5)


def test_scores_do_not_depend_on_the_batch(tiny, evaluator, state):
    one = evaluator._replace(batch_size=1)
    np.testing.assert_allclose(
        evaluator.log_likelihoods(state, PAIRS), one.log_likelihoods(state, PAIRS), rtol=2e-5, atol=2e-5
    )
    order = [3, 0, 6, 2, 5, 1, 4]
    shuffled = evaluator.log_likelihoods(state, [PAIRS[i] for i in order])
    np.testing.assert_allclose(np.asarray(evaluator.log_likelihoods(state, PAIRS))[order], shuffled, rtol=2e-5)


def test_losses_count_completion_tokens(tiny, one_token, evaluator, state):
    examples = [encode_example(tiny.tokenizer, *pair) for pair in PAIRS]
    nll, tokens = evaluator.losses(state, examples)
    assert tokens.tolist() == [len(completion) + 1 for _, completion in PAIRS]
    wanted = [-naive(tiny, one_token, state, prompt, completion + "\0") for prompt, completion in PAIRS]
    np.testing.assert_allclose(nll, wanted, rtol=2e-5)


def greedy(tiny, one_token, state, prompt, count):
    """Token by token, the most likely each time."""
    ids, out, logits = tiny.tokenizer.encode(prompt), [], jnp.zeros(256)
    state = surgery.broadcast(state, 1)
    while len(out) < count:
        for token in ids:
            logits, state = one_token(token, state)
        ids = [int(logits.argmax())]
        if ids == [tiny.tokenizer.eos_id]:
            break
        out += ids
    return tiny.tokenizer.decode(out)


def test_answers_equal_naive_greedy_decoding_in_any_batch(tiny, one_token, evaluator, state):
    prompts = ["abc", "a", "hello, hello"]
    wanted = [greedy(tiny, one_token, state, prompt, 6) for prompt in prompts]
    assert evaluator.answers(state, prompts, (), 6) == wanted
    assert evaluator.answers(state, prompts[::-1], (), 6) == wanted[::-1]
    stop = wanted[0][2]
    assert evaluator.answers(state, prompts, (stop,), 6) == [text.split(stop)[0] for text in wanted]


class Parity:
    """A task of its own: of two requests of one kind and one of the other, each is told back."""

    name, metrics, headline = "parity", ("first", "text"), "first"

    def description(self, record):
        return ""

    def requests(self, record, shots=()):
        return [Loglikelihood(record["q"], "a"), Generate(record["q"], ("\n",)), Loglikelihood(record["q"], "bc")]

    def score(self, record, results):
        first, text, second = results
        assert isinstance(text, str)
        return {"first": float(first > second), "text": float(len(text))}

    def to_example(self, record):
        return record["q"], "a"


def test_task_scores_go_to_their_records(tiny, evaluator, state):
    records = [{"q": "one"}, {"q": "another one"}, {"q": "x"}]
    scores = evaluator.scores(state, Parity(), records)
    singles = [evaluator.scores(state, Parity(), [record]) for record in records]
    assert scores == {metric: [single[metric][0] for single in singles] for metric in ("first", "text")}


def test_tick_counts_every_sequence(evaluator, state):
    ticks = []
    evaluator._replace(tick=ticks.append).log_likelihoods(state, PAIRS)
    assert sum(ticks) == len(PAIRS)
