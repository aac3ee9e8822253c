"""A server's lists laid onto the student's tokens: where both cut alike, and nowhere else."""

import numpy as np
import pytest

from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core.objective import Example
from state_tuning.objectives.divergences import NONE
from state_tuning.test_time_scaling.rollouts import batch_of
from state_tuning.test_time_scaling.teacher import listed
from state_tuning.test_time_scaling.teacher.listed import Lists

BYTES = ByteTokenizer()


def laid(sample, lists, ended=False):
    """(targets, sampled) of one sample after the prompt "q:"."""
    tokens = [*BYTES.encode("q:"), *BYTES.encode(sample), *([BYTES.eos_id] if ended else [])]
    examples = [Example(np.asarray(tokens, np.int32), 2, 0)]
    return listed.targets(BYTES, [sample], examples, batch_of(examples), [lists])


def at(target, place):
    """{token: log q} at a token of the sample."""
    pairs = zip(target.ids[0, 1 + place], target.log_q[0, 1 + place], strict=True)
    return {chr(token): round(float(value), 3) for token, value in pairs if value > NONE / 2}


def test_lists_stand_where_the_tokens_are_predicted():
    lists = Lists(["4", "2", "!"], [-0.5, -0.1, -3.0], [{"4": -0.5, "5": -1.0, "word": -2.0}, {"3": -2.5}, {}])
    target, sampled = laid("42", lists)
    assert target.known[0].tolist()[:4] == [0, 1, 1, 0]
    assert at(target, 0) == {"4": -0.5, "5": -1.0}
    assert at(target, 1) == {"3": -2.5, "2": -0.1}, "the sample's own token is listed too"
    assert sampled.log_q[0, 1:3].tolist() == pytest.approx([-0.5, -0.1])


def test_where_the_server_cuts_otherwise_nothing_is_known():
    lists = Lists(["a", "bc", "d", "!"], [-1.0, -2.0, -3.0, -9.0], [{"a": -1.0}, {"bc": -2.0}, {"d": -3.0}, {}])
    target, sampled = laid("abcd", lists)
    assert target.known[0, 1:5].tolist() == [1, 0, 0, 1]
    assert sampled.known[0, 1:5].tolist() == [1, 0, 0, 1]
    assert sampled.log_q[0, 4] == -3.0


def test_after_a_byte_that_the_text_does_not_show_nothing_is_known():
    tokens = [*BYTES.encode("q:x"), 0xFF, *BYTES.encode("abc4")]
    example, text = Example(np.asarray(tokens, np.int32), 2, 0), "x\N{REPLACEMENT CHARACTER}abc4"
    lists = Lists([*text, "!"], [-1.0] * 7, [{"z": -2.0}] * 7)
    target, sampled = listed.targets(BYTES, [text], [example], batch_of([example]), [lists])
    assert target.known[0, 1:7].tolist() == [1, 0, 0, 0, 0, 0]
    assert sampled.known.sum() == 1


def test_a_first_token_that_the_server_left_out_moves_nothing():
    lists = Lists(["c", "d", "!"], [-1.0, -2.0, -9.0], [{"c": -1.0}, {"d": -2.0}, {}])
    assert laid("bcd", lists)[0].known[0, 1:4].tolist() == [0, 1, 1]


def test_the_end_is_known_where_the_server_lists_it():
    lists = Lists(["a", "</s>"], [-1.0, -0.2], [{"a": -1.0}, {"</s>": -0.2, "b": -2.0}])
    target, sampled = laid("a", lists, ended=True)
    assert at(target, 1) == {chr(BYTES.eos_id): -0.2, "b": -2.0}
    assert sampled.log_q[0, 2] == np.float32(-0.2)
    other = Lists(["a", "b"], [-1.0, -0.2], [{"a": -1.0}, {"b": -0.2}])
    assert laid("a", other, ended=True)[0].known[0, 1:3].tolist() == [1, 0]


def test_tokens_that_spell_the_same_are_one():
    lists = Lists(["a", "!"], [-1.0, -9.0], [{"a": -1.0, "<0x62>": -2.0, "b": -2.0}, {}])
    assert at(laid("a", lists)[0], 0) == {"a": -1.0, "b": round(float(np.logaddexp(-2.0, -2.0)), 3)}


def test_symbols_of_a_byte_level_vocabulary_are_bytes():
    lists = Lists(["\u0120", "x", "!"], [-1.0, -2.0, -9.0], [{"\u0120": -1.0, "y": -3.0}, {"x": -2.0}, {}])
    assert at(laid(" x", lists)[0], 0) == {" ": -1.0, "y": -3.0}


def test_what_does_not_spell_the_sample_says_nothing():
    for lists in (None, Lists(["z", "!"], [-1.0, -9.0], [{"z": -1.0}, {}])):
        target, sampled = laid("ab", lists)
        assert not target.known.any()
        assert not sampled.known.any()


def test_long_lists_keep_the_likeliest_and_the_samples_own():
    likely = {chr(33 + k): -1.0 - 0.1 * k for k in range(60)}
    target, _ = laid("Z", Lists(["Z", "!"], [-9.0, -9.0], [likely, {}]))
    kept = at(target, 0)
    assert len(kept) == listed.WIDTH == target.ids.shape[-1]
    assert kept["Z"] == -9.0
    assert set(kept) - {"Z"} == set(list(likely)[: listed.WIDTH - 1])
