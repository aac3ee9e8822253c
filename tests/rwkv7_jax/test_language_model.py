"""The language model: its methods against each other, states in and out of files, one-line errors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import LanguageModel, SamplingParams, State, functional, load_state, save_checkpoint, streamed
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.model import split_layers
from rwkv7_jax.quantisation import QuantisedWeight, dequantise
from tests.helpers import CONFIG, random_state, weights

SAMPLING = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def state(tiny: LanguageModel) -> State:
    return random_state(3, 0.5, tiny.config)


def test_stream_joins_to_generate(tiny: LanguageModel, state: State):
    for start in (None, state):
        whole = tiny.generate("The sea", state=start, seed=5, **SAMPLING)
        assert "".join(tiny.stream("The sea", state=start, seed=5, **SAMPLING)) == whole


def test_a_list_of_prompts_gives_a_list(tiny: LanguageModel):
    texts = tiny.generate(["The sea", "a"], temperature=0, max_new_tokens=6)
    assert texts == [tiny.generate(prompt, temperature=0, max_new_tokens=6) for prompt in ("The sea", "a")]


def test_a_stop_string_may_be_given_alone(tiny: LanguageModel):
    whole = tiny.generate("x", temperature=0, max_new_tokens=10)
    stop = whole[1:3]
    assert tiny.generate("x", temperature=0, max_new_tokens=10, stop=stop) == whole[: whole.index(stop)]


def test_score_is_the_sum_of_the_logits(tiny: LanguageModel, state: State):
    context, continuation = "The sea", " is blue"
    ids = tiny.encode(context + continuation)
    for start in (None, state):
        logits, _ = tiny.logits(ids, state=start)
        found = jax.nn.log_softmax(logits)[jnp.arange(len(context) - 1, len(ids) - 1), jnp.asarray(ids[len(context) :])]
        (score,) = tiny.score([(context, continuation)], state=start, batch_size=4)
        np.testing.assert_allclose(score, found.sum(), rtol=1e-5)


def test_the_state_after_a_text_continues_it(tiny: LanguageModel):
    whole, end = tiny.logits("The sea")
    _, middle = tiny.logits("The ")
    rest, after = tiny.logits("sea", state=middle)
    np.testing.assert_allclose(rest, whole[4:], rtol=2e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), after, end)


def test_a_state_changes_the_results(tiny: LanguageModel, state: State):
    pairs = [("The sea", " is blue")]
    assert tiny.score(pairs, batch_size=4) != tiny.score(pairs, state=state, batch_size=4)
    zero = tiny.zero_state()
    assert tiny.score(pairs, batch_size=4) == tiny.score(pairs, state=zero, batch_size=4)


def test_a_tuned_state_round_trips(tiny: LanguageModel, state: State, tmp_path):
    tuned = tiny.tuned_state(state, "random", config={"size": 0.5}, metrics={"loss": 1.0})
    tuned.save(tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors", config=tiny.config, base_model_hash=tiny.weights_hash)
    assert loaded.metadata.items() >= tuned.metadata.items()
    assert loaded.metadata["base_model_hash"] == tiny.weights_hash
    pairs = [("The sea", " is blue")]
    assert tiny.score(pairs, state=loaded, batch_size=4) == tiny.score(pairs, state=state, batch_size=4)
    settings = {"temperature": 0, "max_new_tokens": 6}
    assert tiny.generate("a", state=loaded, **settings) == tiny.generate("a", state=state, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heat": 1.0}, "unknown sampling setting 'heat': choose among"),
        ({"top_p": 2.0}, "top_p must lie in 0..1"),
        ({"presence_penalty": -1e39}, "presence_penalty must lie in"),
        ({"max_new_tokens": 10**400}, "max_new_tokens must lie in 0..2147483647"),
    ],
)
def test_wrong_sampling_settings_are_one_line(tiny: LanguageModel, settings: dict[str, float], message: str):
    for call in (tiny.generate, tiny.stream):
        with pytest.raises(ValueError, match=message) as error:
            call("a", **settings)
        assert "\n" not in str(error.value)


def test_a_state_of_another_model_is_one_line(tiny: LanguageModel):
    other = random_state(0, 0.3, dataclasses.replace(tiny.config, n_layer=3))
    for call in (lambda: tiny.logits("a", state=other), lambda: tiny.score([("a", "b")], state=other)):
        with pytest.raises(ValueError, match=r"a state leaf has shape \(3, 8\), the model needs \(2, 8\)"):
            call()
    with pytest.raises(ValueError, match="a state leaf has shape"):
        tiny.generate("a", state=other)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_outside_the_vocabulary_are_refused(tiny: LanguageModel, token: int):
    with pytest.raises(ValueError, match=f"logits: token {token} is outside the vocabulary of"):
        tiny.logits([1, token])


@pytest.mark.parametrize("pairs", ["Hello", ["ab"], [("a", "b", "c")]])
def test_what_is_no_list_of_pairs_is_refused(tiny: LanguageModel, pairs: object):
    with pytest.raises(TypeError):
        tiny.score(pairs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("state", ["state.safetensors", {}])
def test_what_is_no_state_is_refused(tiny: LanguageModel, state: object):
    for call in (lambda: tiny.logits("a", state=state), lambda: tiny.generate("a", state=state)):
        with pytest.raises(TypeError):
            call()


def test_the_weights_for_decoding_are_made_once(tiny: LanguageModel):
    assert tiny.for_decoding is tiny.for_decoding
    other = tiny.replace(params=tiny.params)
    assert other.for_decoding is not tiny.for_decoding


@pytest.mark.parametrize("first", ["for_decoding", "for_few_rows"])
def test_the_form_for_few_rows_shares_what_lies_alike(tiny: LanguageModel, first: str):
    lm = tiny.replace(params=tiny.params)
    getattr(lm, first)
    (model, many), (same, one) = lm.for_decoding, lm.for_few_rows
    assert model == same
    for name, block in many.items():
        if name.startswith("block"):
            for part, matrix in (("ffn", "value"), ("att", "key"), ("att", "output")):
                lies = streamed.plain(one[name][part][matrix])["weight"]
                np.testing.assert_array_equal(lies, block[part][matrix]["weight_t"].T)
            key, known = (tree[name]["ffn"]["key"]["weight_t"] for tree in (one, many))
            assert key.unsafe_buffer_pointer() == known.unsafe_buffer_pointer()
    logits = [functional.step(model, tree, jnp.ones((1, 1), jnp.int32), layers(lm))[0] for tree in (many, one)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


def layers(lm: LanguageModel) -> list[State]:
    """The zero state of one row, one a layer."""
    return split_layers(lm.zero_state(1))


def test_it_shows_what_it_is_and_not_its_weights(tiny: LanguageModel):
    assert tiny.summary in repr(tiny)
    assert len(repr(tiny)) < 300
    assert tiny.decode(tiny.encode("sea")) == "sea"


def test_sampling_settings_are_those_of_sampling_params():
    assert {"temperature", "max_new_tokens"} <= {field.name for field in dataclasses.fields(SamplingParams)}


def test_step_by_step_are_the_logits_of_the_text(tiny: LanguageModel, state: State):
    text = tiny.encode("The sea")
    wanted, _ = tiny.logits(text, state=state)
    after: State | list[State] = state
    for token, row in zip(text, wanted, strict=True):
        logits, after = tiny.step(token, after)
        np.testing.assert_allclose(logits, row, rtol=2e-4, atol=2e-5)
    two, after = tiny.step([text[0], text[0]], state)
    np.testing.assert_allclose(two, jnp.stack([wanted[0]] * 2), rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="1 tokens for a state of 2 rows"):
        tiny.step(5, after)
    with pytest.raises(ValueError, match=r"step: give a token, or one a row, in 0\.\."):
        tiny.step([1, tiny.config.vocab_size])


def test_damaged_weights_end_every_method(tiny: LanguageModel):
    head = tiny.params["head"]["weight"]
    damaged = tiny.replace(params=tiny.params | {"head": {"weight": jnp.asarray(head).at[5].set(jnp.nan)}})
    for use in (
        lambda: damaged.generate("a", temperature=0, max_new_tokens=2),
        lambda: list(damaged.stream("a", max_new_tokens=2)),
        lambda: damaged.logits("ab"),
        lambda: damaged.score([("a", "b")], batch_size=4),
    ):
        with pytest.raises(NonFiniteLogitsError, match=r"not finite.*head\.weight"):
            use()


def test_bfloat16_on_a_cpu_keeps_float32_activations(tiny: LanguageModel, tiny_checkpoint):
    half = LanguageModel.load(tiny_checkpoint, tokenizer="byte", dtype="bfloat16")
    assert half.summary.endswith("bfloat16 matrices and float32 activations on cpu")
    assert tiny.summary.endswith("float32 on cpu")
    small = LanguageModel.load(tiny_checkpoint, tokenizer="byte", dtype="bfloat16", quantise="int8")
    assert small.summary.endswith("int8 matrices, bfloat16 products and float32 activations on cpu")
    assert half.params["head"]["weight"].dtype == jnp.bfloat16
    assert half.zero_state().att_shift.dtype == jnp.float32
    ids = tiny.encode("The sea")
    found, wanted = half.logits(ids)[0], tiny.logits(ids)[0]
    assert 0 < jnp.linalg.norm(found - wanted) < 0.02 * jnp.linalg.norm(wanted)
    logits, _ = half.step(ids[0])
    np.testing.assert_allclose(logits, found[0], rtol=0.02, atol=0.02 * float(jnp.abs(found).max()))
    assert len(half.generate("The sea", temperature=0, max_new_tokens=4)) <= 4


@pytest.mark.parametrize(("quantise", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_weights_compute_what_their_numbers_stand_for(tmp_path, quantise, bits):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights(config=dataclasses.replace(CONFIG, n_embd=32, head_size=16, dim_ffn=64)))
    exact, small = (LanguageModel.load(path, quantise=name, tokenizer="byte") for name in ("none", quantise))
    kinds = {
        jax.tree_util.keystr(at, simple=True, separator="/"): leaf.bits
        for at, leaf in jax.tree_util.tree_leaves_with_path(
            small.params, is_leaf=lambda leaf: isinstance(leaf, QuantisedWeight)
        )
        if isinstance(leaf, QuantisedWeight)
    }
    assert set(kinds.values()) == {bits}
    assert len(kinds) == 1 + 2 * 6  # the head, and six matrices of the first block and of the stack
    assert small.weights_hash == exact.weights_hash
    assert small.identity == f"{exact.identity} {quantise}"
    assert quantise in small.summary
    same = exact.replace(
        params=jax.tree.map(
            lambda leaf: dequantise(leaf) if isinstance(leaf, QuantisedWeight) else leaf,
            small.params,
            is_leaf=lambda leaf: isinstance(leaf, QuantisedWeight),
        )
    )
    many = np.random.default_rng(0).integers(0, 256, 80).tolist()
    # 80 rows are computed in float32, 5 rows with activations of 16 bits.
    for tokens, bound in ((many, 2e-4), (many[:5], 4e-3)):
        (logits, state), (expected, after) = small.logits(tokens), same.logits(tokens)
        np.testing.assert_allclose(logits, expected, atol=bound)
        jax.tree.map(partial(np.testing.assert_allclose, atol=bound), state, after)
    assert small.generate("ab", temperature=0, max_new_tokens=4) == same.generate("ab", temperature=0, max_new_tokens=4)

    def loss(lm, wkv):
        start = lm.zero_state(1)._replace(wkv=wkv)
        return functional.forward(lm.model, lm.params, jnp.array([many], jnp.int32), start)[0].var()

    zero = small.zero_state(1).wkv
    got, wanted = (jax.jit(jax.grad(partial(loss, lm)))(zero) for lm in (small, same))
    np.testing.assert_allclose(got, wanted, atol=2e-3 * float(np.abs(wanted).max()))
