"""The objective: where the mask begins, padding, and the chunked loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from rwkv7_jax.tokenizer import JsonTokenizer
from state_tuning.core import objective
from state_tuning.core.objective import Example

texts = st.text("ab c", max_size=12)


class MergingTokenizer:
    """Greedy longest match over {a, b, c, space, ab, bc, ' a'}: merges freely across any boundary."""

    vocab = ("a", "b", "c", " ", "ab", "bc", " a")
    vocab_size = 8
    eos_id = 0

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            token = max((token for token in self.vocab if text.startswith(token)), key=len)
            ids.append(1 + self.vocab.index(token))
            text = text[len(token) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(self.vocab[i - 1] for i in ids if i)

    def encode_bytes(self, data: bytes) -> list[int]:
        return self.encode(data.decode())

    def decode_bytes(self, ids) -> bytes:
        return self.decode(ids).encode()


tokenizer = MergingTokenizer()


@given(texts, texts, st.booleans())
def test_the_mask_covers_exactly_the_completion(prompt, completion, eos):
    if not completion and not eos:
        return
    example = objective.encode_example(tokenizer, prompt, completion, eos=eos)
    batch = objective.collate([example], len(example.tokens) + 2)
    seen = batch["tokens"][0][batch["valid"][0] & (batch["loss_mask"][0] == 0)].tolist()
    predicted = batch["targets"][0][batch["loss_mask"][0] > 0].tolist()
    assert tokenizer.decode(predicted) == completion
    assert predicted[-1:] == [tokenizer.eos_id] if eos else tokenizer.eos_id not in predicted
    generation_prompt = tokenizer.encode(prompt) or [tokenizer.eos_id]
    assert seen == generation_prompt[:-1], "before the first loss the model has seen what a generation feeds it"
    assert example.tokens[: example.completion_start].tolist() == generation_prompt


def test_a_merge_across_the_boundary_does_not_move_the_mask():
    joint = tokenizer.encode("ca" + "b")
    assert tokenizer.decode(joint[-1:]) == "ab", "the toy tokenizer merges half the prompt with the completion"
    example = objective.encode_example(tokenizer, "ca", "b", eos=False)
    assert tokenizer.decode(example.tokens[example.completion_start :]) == "b"
    assert objective.boundary_merges(tokenizer, "ca", "b")
    assert not objective.boundary_merges(tokenizer, "cb", "a")


def test_only_the_boundary_decides_about_merges():
    for far in (63, 64, 65, 500):
        assert objective.boundary_merges(tokenizer, "b" * far + "ca", "b" * far)
        assert not objective.boundary_merges(tokenizer, "ab" * far + "c", "ab" * far)


def test_a_completion_gets_no_space_that_is_put_before_whole_texts(tmp_path):
    symbols = ["<unk>", "</s>", *"▁king?ROMEO:", "▁k"]
    model = tokenizers.models.BPE({s: i for i, s in enumerate(dict.fromkeys(symbols))}, [("▁", "k")], unk_token="<unk>")
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", "always")
    library.decoder = tokenizers.decoders.Metaspace("▁", "always")
    library.save(str(tmp_path / "tokenizer.json"))
    llama = JsonTokenizer(tmp_path / "tokenizer.json")
    for completion in (" king?", "king?", "  king"):
        example = objective.encode_example(llama, "ROMEO: O", completion, eos=False)
        assert llama.decode(example.tokens.tolist()) == "ROMEO: O" + completion
        part = objective.encode_example(llama, " ROMEO:", completion, eos=False, follows=True)
        both = [*example.tokens.tolist(), *part.tokens.tolist()]
        assert llama.decode(both) == f"ROMEO: O{completion} ROMEO:{completion}"
    text = objective.encode_example(llama, "", "king", eos=False)
    assert text.tokens[1:].tolist() == llama.encode("king"), "a text without a prompt is whole"


def test_prefix_comes_first_and_is_never_predicted():
    example = objective.encode_example(tokenizer, "c", "a", prefix=[0, 3])
    assert example == Example(pytest.approx([0, 3, 3, 1, 0]), completion_start=3, truncated=0)


@given(texts, st.text("ab c", min_size=1, max_size=12), st.integers(1, 12))
def test_truncation_spares_the_completion_and_a_quarter_for_the_prompt(prompt, completion, max_len):
    whole = objective.encode_example(tokenizer, prompt, completion)
    cut = objective.encode_example(tokenizer, prompt, completion, max_len)
    positions = len(whole.tokens) - 1
    assert len(cut.tokens) - 1 == min(positions, max_len)
    assert cut.truncated == len(whole.tokens) - len(cut.tokens)
    answer, kept = whole.tokens[whole.completion_start :], cut.tokens[cut.completion_start :]
    context = whole.tokens[: whole.completion_start].tolist()
    assert cut.completion_start >= min(len(context), max(1, max_len // 4))
    assert kept.tolist() == answer[: max_len + 1 - cut.completion_start].tolist()
    assert cut.tokens[: cut.completion_start].tolist() == context[-cut.completion_start :]


def test_nothing_to_predict_is_refused():
    with pytest.raises(ValueError, match="no token to predict"):
        objective.encode_example(tokenizer, "a", "", eos=False)
    with pytest.raises(ValueError, match="max_len is 0"):
        objective.encode_example(tokenizer, "a", "b", 0)


def test_collate_pads_rows_and_refuses_what_does_not_fit():
    example = Example(np.array([1, 2, 3], np.int32), completion_start=2, truncated=0)
    batch = objective.collate([example], 3, batch_size=2)
    assert batch["tokens"].tolist() == [[1, 2, 0], [0, 0, 0]]
    assert batch["targets"].tolist() == [[2, 3, 0], [0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert batch["valid"].tolist() == [[True, True, False], [False] * 3]
    with pytest.raises(ValueError, match="example 0 has 2 positions, more than length 1"):
        objective.collate([example], 1)
    with pytest.raises(ValueError, match="2 examples do not fit a batch of 1 rows"):
        objective.collate([example] * 2, 3, batch_size=1)


def random_case(seed: int, batch=3, length=11, width=5, vocab=13):
    """Random hidden states, head, targets and a mask that leaves one row empty; NaN wherever nothing is predicted."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((batch, length)) < 0.4).astype(np.float32)
    mask[0] = 0
    mask[1, 0] = 1
    hidden = np.where(mask[..., None] > 0, rng.normal(size=(batch, length, width)), np.nan).astype(np.float32)
    head = rng.normal(size=(width, vocab)).astype(np.float32)
    targets = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets), jnp.asarray(mask)


def oracle(hidden, head, targets, mask):
    """Row sums of NLL in float64, and the gradient of their weighted sum to the hidden states."""
    hidden, head = np.nan_to_num(np.asarray(hidden, np.float64)), np.asarray(head, np.float64)
    logits = hidden @ head
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    onehot = np.eye(head.shape[1])[np.asarray(targets)]
    mask = np.asarray(mask, np.float64)
    rows = -(np.log(probabilities) * onehot).sum(-1) * mask
    return rows.sum(1), ((probabilities - onehot) * mask[..., None]) @ head.T


def test_sums_match_float64_and_padding_may_hold_nan():
    hidden, head, targets, mask = random_case(0)
    nll, count = objective.completion_sums(hidden @ head, targets, mask)
    expected, _ = oracle(hidden, head, targets, mask)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(count, mask.sum(1))
    mean = objective.completion_loss(hidden @ head, targets, mask)
    np.testing.assert_allclose(mean, expected.sum() / mask.sum(), rtol=1e-5)
    assert objective.completion_loss(hidden @ head, targets, jnp.zeros_like(mask)) == 0


@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_chunked_equals_plain_in_value_and_gradient(chunk, frozen_head):
    hidden, head, targets, mask = random_case(chunk)
    weights = jnp.asarray([0.3, -1.5, 2.0])

    @jax.jit
    def chunked(hidden):
        sums = objective.chunked_sums(hidden, lambda x: x @ head, targets, mask, chunk=chunk, frozen_head=frozen_head)
        return (sums[0] * weights).sum(), sums

    (_, (nll, count)), gradient = jax.value_and_grad(chunked, has_aux=True)(hidden)
    expected, slope = oracle(hidden, head, targets, mask)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(count, mask.sum(1))
    np.testing.assert_allclose(gradient, slope * np.asarray(weights)[:, None, None], rtol=1e-4, atol=1e-6)


def test_only_a_frozen_head_gets_no_gradient():
    hidden, head, targets, mask = random_case(1)

    def loss(head, frozen):
        nll, _ = objective.chunked_sums(hidden, lambda x: x @ head, targets, mask, chunk=4, frozen_head=frozen)
        return nll.sum()

    expected = jax.grad(lambda head: objective.completion_sums(jnp.nan_to_num(hidden) @ head, targets, mask)[0].sum())
    np.testing.assert_allclose(jax.grad(loss)(head, False), expected(head), rtol=1e-4, atol=1e-6)
    assert (jax.grad(loss)(head, True) == 0).all()


@pytest.mark.parametrize("frozen_head", [False, True])
def test_logits_exist_for_one_chunk_at_a_time(frozen_head):
    batch, length, width, vocab, chunk = 2, 64, 3, 50, 8

    def loss(hidden, head):
        targets, mask = jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length))
        sums = objective.chunked_sums(hidden, lambda x: x @ head, targets, mask, chunk=chunk, frozen_head=frozen_head)
        return sums[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.zeros((batch, length, width)), jnp.zeros((width, vocab)))
    sizes = [var.aval.size for var in variables(jaxpr.jaxpr) if var.aval.shape and var.aval.shape[-1] == vocab]
    assert max(sizes) == batch * chunk * vocab


@pytest.mark.parametrize("frozen_head", [False, True])
def test_no_logits_leave_a_branch(frozen_head):
    """On a mesh of GPUs XLA gathers what does, residuals too, from all devices."""

    def loss(hidden, head):
        targets, mask = jnp.zeros((2, 8), jnp.int32), jnp.ones((2, 8))
        return objective.chunked_sums(hidden, lambda x: x @ head, targets, mask, chunk=4, frozen_head=frozen_head)[
            0
        ].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.zeros((2, 8, 3)), jnp.zeros((3, 50))).jaxpr
    leaving = [var.aval.shape for eqn in equations(jaxpr) if eqn.primitive.name == "cond" for var in eqn.outvars]
    assert leaving
    assert not [shape for shape in leaving if shape[:2] == (2, 4) and shape[-1] == 50]


def variables(jaxpr):
    """Every output of every equation, inner jaxprs included."""
    return (var for eqn in equations(jaxpr) for var in eqn.outvars)


def equations(jaxpr):
    """Every equation, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)
