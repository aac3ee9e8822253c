"""Wrong arguments of a generation are one line that names them."""

import jax
import numpy as np
import pytest

from rwkv7_jax.generation.arguments import random_key, sampling_params, text_list, token_ids
from rwkv7_jax.generation.sampling import check_setting


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.0, None, "3", True])
def test_a_seed_is_a_whole_number_of_32_bits(seed):
    with pytest.raises(ValueError, match=r"^seed must be a whole number in 0..4294967295, got"):
        random_key(seed)


def test_seeds_differ_from_each_other():
    rows = [jax.random.key_data(random_key(seed)).tolist() for seed in (0, np.int64(1), 2**31, 2**32 - 1)]
    assert len({tuple(row) for row in rows}) == 4


@pytest.mark.parametrize("value", [5, b"hi", [1, 2], ["a", None], [["a"]], "\ud800", ["a", "\udfff"]])
def test_what_is_not_text_is_named(value):
    with pytest.raises(ValueError, match=r"^prompt: ") as error:
        text_list("prompt", value)
    assert str(error.value).isprintable()


def test_texts_are_a_list():
    given = (None, "a", ("a", "b"), iter(["c"]))
    assert [text_list("stop", value) for value in given] == [[], ["a"], ["a", "b"], ["c"]]


@pytest.mark.parametrize("ids", [None, 5, [1.5], ["a"], [None], [[1]], np.ones((1, 2)), [True], [], [7], [-1], [2**70]])
def test_what_is_not_a_token_is_named(ids):
    with pytest.raises(ValueError, match=r"^logits: "):
        token_ids("logits", ids, 7)


def test_token_ids_may_be_of_any_sequence():
    assert [token_ids("x", ids, 100) for ids in ((1, 2), np.array([1, 2]), b"ab"[:0] + bytes([1, 2]))] == [[1, 2]] * 3


def test_an_unknown_setting_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown sampling setting 'max_tokens': choose among .*max_new_tokens"):
        sampling_params({"max_tokens": 3})


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "presence_penalty", "max_new_tokens"])
@pytest.mark.parametrize("value", [None, "0.5", [1], float("nan"), float("inf"), -float("inf"), True, 10**400])
def test_settings_that_are_not_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must lie in "):
        check_setting(name, value)


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens"])
def test_what_counts_is_a_whole_number(name):
    check_setting(name, np.int64(3))
    check_setting(name, 3.0)
    with pytest.raises(ValueError, match=f"^{name} must be a whole number, got 2.5$"):
        check_setting(name, 2.5)
