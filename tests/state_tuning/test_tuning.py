"""`tune`: the loss falls, numbers repeat, every way to write an example is read, errors are one line."""

import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import state_tuning
from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import load_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from tests.helpers import CONFIG, MODEL, weights

EXAMPLES = [("ab", "cd"), {"prompt": "x", "completion": "yz"}, {"text": "hello"}, "world", ["q", "r"]]


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(MODEL, weights(), ByteTokenizer(), "0" * 64)


@pytest.fixture(scope="module")
def result(lm):
    return state_tuning.tune(lm, EXAMPLES, steps=12, learning_rate=0.1, batch_size=4, validation=EXAMPLES[:3])


def test_the_loss_falls_and_the_state_is_a_file_of_its_model(lm, result, tmp_path):
    assert len(result.losses) == result.steps == 12
    assert np.mean(result.losses[-4:]) < np.mean(result.losses[:4]) - 0.1
    assert np.isfinite(result.validation_loss)
    result.state.save(tmp_path / "state.safetensors")
    read = load_state(tmp_path / "state.safetensors", config=CONFIG, base_model_hash="0" * 64)
    jax.tree.map(np.testing.assert_array_equal, read.state, result.state.state)
    assert lm.generate("ab", state=result.state, max_new_tokens=2) == lm.generate("ab", state=read, max_new_tokens=2)


def test_the_same_seed_gives_the_same_numbers(lm, result):
    seen = []
    method = state_tuning.standard(lm)
    again = state_tuning.tune(
        lm, EXAMPLES, method, steps=12, learning_rate=0.1, batch_size=4, callback=lambda *step: seen.append(step)
    )
    assert again.losses == result.losses
    assert [step for step, _ in seen] == list(range(1, 13))
    assert float(seen[-1][1]["loss"]) == again.losses[-1]
    assert again.validation_loss is None
    other = state_tuning.tune(lm, EXAMPLES, method, steps=1, batch_size=4, seed=1)
    assert other.losses != again.losses[:1]


def test_dbp_gets_the_correlations_that_it_learns_from(lm):
    losses = {}
    for name, wrap in {"adam": lambda inner: inner, "dbp": state_tuning.decorrelated}.items():
        optimizer = wrap(optax.adam(0.1))
        losses[name] = state_tuning.tune(lm, EXAMPLES, steps=6, optimizer=optimizer).losses
    assert losses["dbp"][0] == losses["adam"][0]
    assert losses["dbp"][2:] != losses["adam"][2:]
    assert losses["dbp"][-1] < losses["dbp"][0]


@pytest.mark.parametrize(
    ("examples", "options", "line"),
    [
        ([], {}, "^tune: there is no example; give"),
        ("text", {}, "^tune: there is no example; give a list"),
        (EXAMPLES, {"validation": []}, "^tune: there is no validation example"),
        ([("a", "b"), ("a", "b", "c")], {}, "^tune: example 1 is neither a text, nor"),
        ([{"prompt": "a"}], {}, "^tune: example 0 is neither"),
        ([{"prompt": "a", "text": "b"}], {}, "^tune: example 0 has 'completion' and 'text'; give one of them"),
        (["a", {"text": "Q: a\nA:"}], {}, "^tune: example 1 the conversation has no answer to learn"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, "^tune: example 0 no assistant message"),
        (EXAMPLES, {"steps": 0}, "^steps is 0"),
        (EXAMPLES, {"batch_size": 0}, "^tune: batch_size is 0"),
        (EXAMPLES, {"learning_rate": float("nan")}, "^learning_rate is nan, it must be finite"),
        (
            EXAMPLES,
            {"method": state_tuning.standard(RWKV7Config(vocab_size=16, n_layer=1, n_embd=8, head_size=4))},
            r"^tune: the method is for a model of \(1, 8\) layers and width, this one has",
        ),
        (
            EXAMPLES,
            {"method": state_tuning.Method(dict, lambda tree, rows: tree)},
            "^tune: the method trains no initial",
        ),
    ],
)
def test_errors_are_one_line(lm, examples, options, line):
    with pytest.raises(ValueError, match=line) as error:
        state_tuning.tune(lm, examples, **options)
    assert "\n" not in str(error.value)


class MergingTokenizer(ByteTokenizer):
    """Bytes, but for one token of two."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("bc", "\1"))


def test_a_token_that_prompt_and_completion_would_share_gives_a_warning(lm):
    merging = lm.replace(tokenizer=MergingTokenizer())
    with pytest.warns(UserWarning, match="^tune: in 1 of 2 examples the end of the prompt .*; begin the "):
        state_tuning.tune(merging, [("ab", "cd"), ("ab ", "cd")], steps=1)
    state_tuning.tune(merging, [("ab ", "cd"), "abcd"], steps=1)


def test_a_conversation_learns_its_answers_alone_and_a_cut_is_told(lm):
    short = {"steps": 1, "batch_size": 1}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    as_pair = state_tuning.tune(lm, [("User: a\n\nAssistant:", " b")], **short).losses
    assert state_tuning.tune(lm, [{"messages": messages, "prompt": None}], **short).losses == as_pair
    assert state_tuning.tune(lm, ["User: a\n\nAssistant: b"], **short).losses == as_pair
    assert state_tuning.tune(lm, ["User: a\n\nAssistant: b"], learn="all", **short).losses != as_pair
    with pytest.warns(UserWarning, match="^tune: max_length 16 cuts 1 of 1 examples; the longest has 24 tokens$"):
        state_tuning.tune(lm, [("a" * 20, "bcd")], max_length=16, **short)


def test_what_is_no_method_is_refused(lm):
    for method in ("dbp", optax.adam(0.1)):
        with pytest.raises(TypeError):
            state_tuning.tune(lm, EXAMPLES, method=method)


def test_a_result_shows_losses_and_no_arrays(result):
    assert repr(result).startswith(f"TuneResult({result.steps} steps, loss {result.losses[0]:.4g} to ")
    assert len(repr(result)) < 120


def test_the_face_is_complete_and_light():
    for name in state_tuning.__all__:
        assert getattr(state_tuning, name) is not None
    assert state_tuning.upscale.Upscale is state_tuning.upscale.fitting.Upscale
    assert state_tuning.distill is state_tuning.observer.distill
    for package in ("core", "upscale", "dbp", "observer", "test_time_scaling", "baselines"):
        part = getattr(state_tuning, package)
        assert set(part.__all__) <= set(dir(part))
        assert all(hasattr(part, name) for name in part.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = state_tuning.nothing
    code = "import sys, state_tuning; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
